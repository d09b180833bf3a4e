#!/usr/bin/env python3
"""REST over TLS with Python's ssl and http.client: both versions, what is refused, the end.

Environment: CHAT_PORT, CHAT_API_KEY, and CHAT_CA, the file of the certificate to trust.
"""
import http.client
import json
import os
import socket
import ssl

PORT = int(os.environ["CHAT_PORT"])
VERSIONS = [("TLSv1.2", ssl.TLSVersion.TLSv1_2), ("TLSv1.3", ssl.TLSVersion.TLSv1_3)]


def context(version=None, alpn=("http/1.1",)):
    made = ssl.create_default_context(cafile=os.environ["CHAT_CA"])
    if version is not None:
        made.minimum_version = made.maximum_version = version
    made.set_alpn_protocols(list(alpn))
    return made


def connect(made):
    plain = socket.create_connection(("127.0.0.1", PORT), timeout=10)
    return made.wrap_socket(plain, server_hostname="localhost")


for name, version in VERSIONS:
    stream = connect(context(version, ("h2", "http/1.1")))
    assert (stream.version(), stream.selected_alpn_protocol()) == (name, "http/1.1"), stream.version()
    connection = http.client.HTTPConnection("localhost")
    connection.sock = stream
    headers = {"X-API-Key": os.environ["CHAT_API_KEY"], "Content-Type": "application/json"}
    for number in range(3):
        body = json.dumps({"id": f"{name}-{number}", "content": "x" * 50_000})
        connection.request("POST", "/api/chat/rooms/python/messages", body, headers)
        answer = connection.getresponse()
        assert answer.status == 201, (answer.status, answer.read())
        answer.read()
    stream.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = b""
    while piece := stream.recv(65_536):
        text += piece
    assert text.startswith(b"HTTP/1.1 200 "), text
    # Raises unless the server has said that this is the end.
    stream.unwrap().close()

try:
    connect(context(alpn=("h2",)))
    raise SystemExit("a client of other protocols was served")
except ssl.SSLError as error:
    assert "NO_APPLICATION_PROTOCOL" in str(error).upper().replace(" ", "_"), error

print("Python ssl: both versions served, other protocols refused")
