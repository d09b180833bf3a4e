//! A member of a room that comes back with what it has, as the README tells clients to.
//!
//! Owns a connection, the position in the room, and the check that nothing is missing, doubled or out of order.

use std::net::TcpStream;

use serde_json::{Value, json};

use crate::client::{Client, End, now_s, token};

pub struct Member {
    pub user: String,
    room: String,
    pub client: Client,
    pub epoch: Value,
    pub seq: u64,
}

impl Member {
    /// Connects over a socket and joins for the first time.
    pub fn join(stream: TcpStream, user: &str, room: &str) -> Self {
        let client = Client::over(stream, &day(user));
        let mut member = Self { user: user.to_owned(), room: room.to_owned(), client, epoch: Value::Null, seq: 0 };
        let online = member.ask(json!({"type": "join_room", "roomId": room}));
        (member.epoch, member.seq) = (online["epoch"].clone(), online["seq"].as_u64().expect("a seq"));
        member
    }

    /// Comes back over another socket; all that was missed must be there.
    pub fn come_back(&mut self, stream: TcpStream) {
        self.client = Client::over(stream, &day(&self.user));
        let join = json!({"type": "join_room", "roomId": self.room, "since": self.seq, "epoch": self.epoch});
        let online = self.ask(join);
        assert_eq!(online["recovered"], true, "{online}");
    }

    fn ask(&mut self, join: Value) -> Value {
        self.client.send(join);
        self.client.wait_for("online_update")
    }

    /// Reads up to the event with this `seq`; gives what came beside.
    #[track_caller]
    pub fn read_to(&mut self, seq: u64) -> Vec<Value> {
        let mut others = Vec::new();
        while self.seq < seq {
            let message = self.client.next();
            if !self.takes(&message) {
                others.push(message);
            }
        }
        others
    }

    /// Reads until the connection ends or is silent for a while.
    pub fn read_to_end(&mut self) -> End {
        loop {
            match self.client.read() {
                Ok(message) => _ = self.takes(&message),
                Err(end) => return end,
            }
        }
    }

    /// Counts an event of the sequence, which must be the next one.
    fn takes(&mut self, message: &Value) -> bool {
        let Some(seq) = message["seq"].as_u64().filter(|_| message["type"] != "online_update") else { return false };
        assert_eq!(seq, self.seq + 1, "{}: {message}", self.user);
        self.seq = seq;
        true
    }
}

/// A token that outlives every fault.
fn day(user: &str) -> String {
    token(&json!({"userId": user, "exp": now_s() + 86_400}))
}
