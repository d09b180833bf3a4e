#!/usr/bin/env bash
# The seed's own example: wscat connects, joins, and prints what the server says.
#
# Environment: CHAT_PORT, CHAT_URL, JWT_SECRET, CHAT_API_KEY, WSCAT (the program).
set -euo pipefail

output="$(mktemp)"
held=""
pid=""
cleanup() {
    [ -z "$pid" ] || kill "$pid" 2>/dev/null || true
    [ -z "$held" ] || exec {held}>&-
    rm -rf "$output" "$output.in"
}
trap cleanup EXIT

encode() { node -e 'process.stdout.write(Buffer.from(process.argv[1]).toString("base64url"))' "$1"; }

token() {
    local body
    body="$(encode '{"alg":"HS256","typ":"JWT"}').$(encode "{\"userId\":\"$1\"}")"
    node -e '
        const { createHmac } = require("node:crypto");
        const [body] = process.argv.slice(1);
        process.stdout.write(`${body}.${createHmac("sha256", process.env.JWT_SECRET).update(body).digest("base64url")}`);
    ' "$body"
}

# Waits until wscat has printed a line with this in it.
printed() {
    local end=$((SECONDS + 10))
    until grep -q -- "$1" "$output"; do
        if [ "$SECONDS" -ge "$end" ]; then
            echo "wscat never printed $1; it printed:"
            cat "$output"
            return 1
        fi
        sleep 0.05
    done
}

# wscat ends with its standard input, so that is held open.
mkfifo "$output.in"
"$WSCAT" --no-color -c "ws://127.0.0.1:$CHAT_PORT/ws?token=$(token wscat)" \
    -x '{"type": "join_room", "roomId": "room-123"}' -w 60 <"$output.in" >"$output" 2>&1 &
pid=$!
exec {held}>"$output.in"
printed '"type":"connected"'
printed '"type":"user_joined"'
printed '"type":"online_update"'

status="$(node -e '
    fetch(`${process.env.CHAT_URL}/api/chat/rooms/room-123/messages`, {
        method: "POST",
        headers: { "content-type": "application/json", "x-api-key": process.env.CHAT_API_KEY },
        body: JSON.stringify({ content: "hello wscat" }),
    }).then((response) => console.log(response.status));
')"
[ "$status" = 201 ]
printed 'hello wscat'
echo "wscat: connected, joined, and heard a message"
