//! The fields of a client's message: which there are, what each takes, and what is said of one that is wrong.
//!
//! Owns the texts of the refusals. A message is taken apart once, whatever its type, and then read by its type.

use std::borrow::Cow;

use super::{
    Action, EMOJI_BYTES_MAX, EPOCH_BYTES_MAX, ErrorCode, JOIN_ROOMS_MAX, REF_BYTES_MAX, Ref, Request, RoomEntry, Since,
    Token,
};
use crate::wire::digest::DEPTH_MAX;
use crate::wire::object::{self, Member, SplitError};
use crate::wire::stored::edit_fields;
use crate::wire::value::{Id, room_name};

/// Longest raw `roomId` that is repeated in the answer about it: a valid one with every byte
/// escaped.
const ECHO_BYTES_MAX: usize = 6 * 256 + 2;
/// Largest `seq`: every integer up to it is exact in JavaScript.
const SEQ_MAX: i64 = 1 << 53;

pub(super) const REF: &str = "ref must be a string of at most 64 bytes or an integer within 2^53";
pub(super) const REPEATED: &str = "a key is given twice";
pub(super) const TYPE: &str = "type must be a string";
pub(super) const UNKNOWN_TYPE: &str = "type must be one of join_room, join_rooms, leave_room, typing_start, \
    typing_stop, send_message, edit_message, delete_message, reaction, mark_read, ping, auth, refresh_token";
pub(super) const ROOM: &str = "roomId must be a string of 1 to 256 bytes without control characters, \
    and neither . nor ..";
pub(super) const ROOMS: &str = "rooms must be an array of 1 to 100 objects with a roomId";
pub(super) const MESSAGE_ID: &str = "messageId must be a string of 1 to 128 bytes or an integer within 2^53";
pub(super) const EMOJI: &str = "emoji must be a string of 1 to 64 bytes";
pub(super) const ACTION: &str = "action must be \"add\" or \"remove\"";
pub(super) const TOKEN: &str = "token must be a string";
pub(super) const SINCE: &str = "since must be an integer from 0 to 2^53";
pub(super) const EPOCH: &str = "epoch must be a string of at most 64 bytes";
pub(super) const EDIT: &str = "give content, attachments or both";
pub(super) const CONTENT: &str = "content must be a string";
pub(super) const ATTACHMENTS: &str = "attachments must be an array, nested at most 99 levels deep";
pub(super) const SEQ: &str = "seq must be an integer from 1 to 2^53";

/// The raw values of the fields that some message type knows.
#[derive(Default)]
pub(super) struct Fields<'a> {
    text: &'a str,
    kind: Option<&'a str>,
    reference: Option<&'a str>,
    room: Option<&'a str>,
    rooms: Option<&'a str>,
    message_id: Option<&'a str>,
    emoji: Option<&'a str>,
    action: Option<&'a str>,
    token: Option<&'a str>,
    since: Option<&'a str>,
    epoch: Option<&'a str>,
    content: Option<&'a str>,
    attachments: Option<&'a str>,
    seq: Option<&'a str>,
    unknown: Vec<Cow<'a, [u8]>>,
    repeated: bool,
    repeated_reference: bool,
}

impl<'a> Fields<'a> {
    pub(super) fn read(text: &'a str) -> Result<Fields<'a>, SplitError> {
        let mut fields = Fields { text, ..Fields::default() };
        if !object::split_plain(text, |member| fields.take(member)) {
            fields = Fields { text, ..Fields::default() };
            object::split(text, |member| fields.take(member))?;
        }
        fields.repeated |= object::has_duplicate(&mut fields.unknown);
        Ok(fields)
    }

    fn take(&mut self, member: Member<'a>) {
        let field = match &*member.key {
            b"type" => &mut self.kind,
            b"ref" => &mut self.reference,
            b"roomId" => &mut self.room,
            b"rooms" => &mut self.rooms,
            b"messageId" => &mut self.message_id,
            b"emoji" => &mut self.emoji,
            b"action" => &mut self.action,
            b"token" => &mut self.token,
            b"since" => &mut self.since,
            b"epoch" => &mut self.epoch,
            b"content" => &mut self.content,
            b"attachments" => &mut self.attachments,
            b"seq" => &mut self.seq,
            _ => return self.unknown.push(member.key),
        };
        if field.replace(member.raw_value).is_some() {
            self.repeated = true;
            self.repeated_reference |= *member.key == *b"ref";
        }
    }

    pub(super) fn request(&self) -> Result<Request<'a>, (ErrorCode, &'static str)> {
        let wrong = |message| (ErrorCode::InvalidMessage, message);
        if self.repeated {
            return Err(wrong(REPEATED));
        }
        self.reference().map_err(wrong)?;
        let kind = self.kind.and_then(object::string).ok_or(wrong(TYPE))?;
        let request = match &*kind {
            "join_room" => self.join_room(),
            "join_rooms" => self.rooms().map(|rooms| Request::JoinRooms { rooms }),
            "leave_room" => self.room().map(|room| Request::LeaveRoom { room }),
            "typing_start" => self.room().map(|room| Request::Typing { room, start: true }),
            "typing_stop" => self.room().map(|room| Request::Typing { room, start: false }),
            "reaction" => self.reaction(),
            "send_message" => self.room().map(|room| Request::SendMessage { room, text: self.text }),
            "edit_message" => self.edit_message(),
            "delete_message" => self.delete_message(),
            "mark_read" => self.mark_read(),
            "ping" => Ok(Request::Ping),
            "auth" => self.token().map(|token| Request::Auth { token }),
            "refresh_token" => self.token().map(|token| Request::RefreshToken { token }),
            _ => return Err((ErrorCode::UnknownType, UNKNOWN_TYPE)),
        };
        request.map_err(wrong)
    }

    fn reaction(&self) -> Result<Request<'a>, &'static str> {
        let emoji = self.emoji.and_then(object::string).ok_or(EMOJI)?;
        if !(1..=EMOJI_BYTES_MAX).contains(&emoji.len()) {
            return Err(EMOJI);
        }
        Ok(Request::Reaction { room: self.room()?, message_id: self.message_id()?, emoji, action: self.action()? })
    }

    fn join_room(&self) -> Result<Request<'a>, &'static str> {
        Ok(Request::JoinRoom { room: self.room()?, since: self.since()? })
    }

    fn edit_message(&self) -> Result<Request<'a>, &'static str> {
        let (room, message_id) = (self.room()?, self.message_id()?);
        if self.content.is_none() && self.attachments.is_none() {
            return Err(EDIT);
        }
        if self.content.is_some_and(|raw| !raw.starts_with('"')) {
            return Err(CONTENT);
        }
        let is_list = |raw: &str| raw.starts_with('[') && !object::is_deeper_than(raw, DEPTH_MAX - 1);
        if self.attachments.is_some_and(|raw| !is_list(raw)) {
            return Err(ATTACHMENTS);
        }
        Ok(Request::EditMessage { room, message_id, fields: edit_fields(self.content, self.attachments) })
    }

    fn delete_message(&self) -> Result<Request<'a>, &'static str> {
        Ok(Request::DeleteMessage { room: self.room()?, message_id: self.message_id()? })
    }

    fn mark_read(&self) -> Result<Request<'a>, &'static str> {
        let room = self.room()?;
        let seq = self.seq.and_then(object::integer).filter(|seq| (1..=SEQ_MAX).contains(seq)).ok_or(SEQ)?;
        Ok(Request::MarkRead { room, seq: seq.unsigned_abs() })
    }

    pub(super) fn reference(&self) -> Result<Option<Ref<'a>>, &'static str> {
        let raw = match self.reference {
            None | Some("null") => return Ok(None),
            Some(raw) => raw,
        };
        let fine = if raw.starts_with('"') {
            object::string_bytes(raw).len() <= REF_BYTES_MAX
        } else {
            object::integer(raw).is_some()
        };
        if !fine || self.repeated_reference {
            return Err(REF);
        }
        Ok(Some(Ref(raw)))
    }

    pub(super) fn room(&self) -> Result<Cow<'a, str>, &'static str> {
        let room = self.room.and_then(object::string).ok_or(ROOM)?;
        room_name(&room).ok_or(ROOM)?;
        Ok(room)
    }

    fn message_id(&self) -> Result<Id, &'static str> {
        self.message_id.and_then(Id::parse_raw).ok_or(MESSAGE_ID)
    }

    /// An epoch alone says nothing, but has to be one all the same.
    fn since(&self) -> Result<Option<Since<'a>>, &'static str> {
        let given = |raw: Option<&'a str>| raw.filter(|&raw| raw != "null");
        let fits = |epoch: &Cow<'_, str>| epoch.len() <= EPOCH_BYTES_MAX;
        let epoch = given(self.epoch).map(|raw| object::string(raw).filter(fits).ok_or(EPOCH)).transpose()?;
        let Some(raw) = given(self.since) else { return Ok(None) };
        let seq = object::integer(raw).filter(|seq| (0..=SEQ_MAX).contains(seq)).ok_or(SINCE)?;
        Ok(Some(Since { seq: seq.unsigned_abs(), epoch }))
    }

    fn rooms(&self) -> Result<Vec<RoomEntry<'a>>, &'static str> {
        let raw = self.rooms.ok_or(ROOMS)?;
        let entries = object::elements(raw, JOIN_ROOMS_MAX).ok_or(ROOMS)?;
        if entries.is_empty() {
            return Err(ROOMS);
        }
        Ok(entries.into_iter().map(RoomEntry::read).collect())
    }

    fn action(&self) -> Result<Option<Action>, &'static str> {
        let Some(raw) = self.action else {
            return Ok(None);
        };
        match object::string(raw).as_deref() {
            Some("add") => Ok(Some(Action::Add)),
            Some("remove") => Ok(Some(Action::Remove)),
            _ => Err(ACTION),
        }
    }

    fn token(&self) -> Result<Token<'a>, &'static str> {
        let token = self.token.and_then(object::string).ok_or(TOKEN)?;
        Ok(Token(token))
    }
}

impl<'a> RoomEntry<'a> {
    fn read(raw: &'a str) -> RoomEntry<'a> {
        let Ok(fields) = Fields::read(raw) else {
            return RoomEntry::Malformed("null");
        };
        match (fields.room(), fields.since()) {
            (Ok(room), Ok(since)) if !fields.repeated => RoomEntry::Room(room, since),
            _ => RoomEntry::Malformed((fields.room.filter(|raw| raw.len() <= ECHO_BYTES_MAX)).unwrap_or("null")),
        }
    }
}
