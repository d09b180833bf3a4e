//! One message for many rooms, and how the outcome of a post is written.

use crate::chat::envelope::{Answer, ReplyTo};
use crate::chat::http::Rest;
use crate::chat::routes::{Call, Gather, Handled, error};
use crate::chat::shard::Shard;
use crate::wire::client::ErrorCode;
use crate::wire::rest_body::parse_broadcast;
use crate::wire::value::{put_json_string, room_name};

use super::{put_list, refused};

/// A broadcast is parsed and copied once per room, in one turn.
const BROADCAST_BYTES_MAX: usize = 8 << 20;

impl Shard {
    pub(in crate::chat) fn post_broadcast(&mut self, call: &Call<'_>) -> Handled {
        let broadcast = match parse_broadcast(call.body) {
            Ok(broadcast) => broadcast,
            Err(refusal) => return refused(&refusal),
        };
        let max = self.config.limits.broadcast_rooms_max;
        if broadcast.rooms.len() > max {
            return error(422, ErrorCode::InvalidMessage, &format!("rooms must be at most {max}"));
        }
        if broadcast.rooms.len().saturating_mul(broadcast.message.get().len()) > BROADCAST_BYTES_MAX {
            return error(413, ErrorCode::TooLarge, "rooms times message is more than is taken at once, 8 MiB");
        }
        if let Some(turned_away) = self.turn_away(call) {
            return turned_away;
        }
        let message = broadcast.message.get().as_bytes();
        let mut results: Vec<(Box<str>, Option<Answer>)> = Vec::with_capacity(broadcast.rooms.len());
        for room in &broadcast.rooms {
            let part = results.len() as u32;
            let outcome = match room_name(room) {
                None => Some(Answer::Refused(ErrorCode::InvalidMessage)),
                Some(room) => match self.parse_message(call, message, room) {
                    // What is wrong with the message is wrong in every room.
                    Err(refusal) if refusal.status == 400 || part == 0 => return refused(&refusal),
                    Err(_) => Some(Answer::Refused(ErrorCode::InvalidMessage)),
                    Ok(posted) => self
                        .publish(call, room, posted, ReplyTo::RestPart(call.number, part))
                        .err()
                        .map(|_| Answer::Refused(ErrorCode::Overloaded)),
                },
            };
            results.push((Box::from(room.as_str()), outcome));
        }
        let left = results.iter().filter(|(_, outcome)| outcome.is_none()).count();
        if left == 0 {
            return Handled::Now(Rest::json(200, self.broadcast_json(&results)));
        }
        Handled::Gather(Box::new(Gather::Broadcast { results, left }))
    }

    pub(super) fn broadcast_json(&self, results: &[(Box<str>, Option<Answer>)]) -> Vec<u8> {
        let mut out = b"{\"results\":[".to_vec();
        put_list(&mut out, results, |out, (room, answer)| {
            out.extend_from_slice(b"{\"roomId\":");
            put_json_string(out, room);
            out.push(b',');
            match answer {
                Some(answer @ Answer::Published { .. }) => put_published(out, answer),
                Some(Answer::Refused(code)) => self.put_failure(out, *code),
                _ => self.put_failure(out, ErrorCode::Internal),
            }
            out.push(b'}');
        });
        out.extend_from_slice(b"]}");
        out
    }

    fn put_failure(&self, out: &mut Vec<u8>, code: ErrorCode) {
        let text = match code {
            ErrorCode::InvalidMessage => "the room's name is not valid",
            _ => self.text_of(code),
        };
        out.extend_from_slice(format!("\"error\":\"{text}\",\"code\":\"{}\"", code.as_str()).as_bytes());
    }
}

pub(super) fn put_published(out: &mut Vec<u8>, answer: &Answer) {
    let Answer::Published { id, seq, timestamp, users, connections, .. } = answer else { return };
    if let Some(id) = id {
        out.extend_from_slice(b"\"id\":");
        id.put_json(out);
        out.push(b',');
    }
    out.extend_from_slice(format!("\"timestamp\":{timestamp},\"seq\":{seq},").as_bytes());
    out.extend_from_slice(format!("\"delivered\":{{\"users\":{users},\"connections\":{connections}}}").as_bytes());
}
