#!/usr/bin/env bash
# OpenSSL's own client: versions, resumption, renegotiation refused, and a certificate that is replaced meanwhile.
#
# Environment: CHAT_PORT; CHAT_CA, the file of the certificate to trust.
set -uo pipefail

ask() {
    printf 'GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' \
        | timeout 20 openssl s_client -connect "127.0.0.1:$CHAT_PORT" -servername localhost -CAfile "$CHAT_CA" \
            -verify_return_error -ign_eof "$@" 2>&1
}

fail() {
    echo "$1"
    exit 1
}

for version in tls1_2 tls1_3; do
    answer="$(ask "-$version")"
    [[ "$answer" == *'{"status":"alive"}'* ]] || fail "$version: $answer"
done
for version in tls1 tls1_1; do
    answer="$(ask "-$version" -cipher 'ALL@SECLEVEL=0')"
    [[ "$answer" != *'{"status":"alive"}'* ]] || fail "$version is served"
done

session="$(mktemp)"
trap 'rm -f "$session"' EXIT
for version in tls1_2 tls1_3; do
    ask "-$version" -sess_out "$session" >/dev/null
    answer="$(ask "-$version" -sess_in "$session")"
    [[ "$answer" == *Reused,* ]] || fail "$version is not resumed: $answer"
done

# R on a line of its own asks for a renegotiation.
answer="$( (sleep 0.5; echo R; sleep 0.5) | timeout 20 openssl s_client -connect "127.0.0.1:$CHAT_PORT" -tls1_2 -legacy_renegotiation -CAfile "$CHAT_CA" 2>&1)"
[[ "$answer" == *RENEGOTIATING* && "$answer" == *"no renegotiation"* ]] || fail "renegotiation: $answer"

echo "OpenSSL: versions, resumption and renegotiation as they should be"
