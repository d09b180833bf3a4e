//! The routes: which path and method does what, and who may.
//!
//! The checks stand in the order in which their answers count: path, method, credential, rights, length, media type, and
//! then what is in the body. What a route does stands in `rest`.

use std::borrow::Cow;

use super::closing::CloseReason;
use super::connection::{Flag, Phase};
use super::denial::DenialReason;
use super::drain::Stage;
use super::entry::denial;
use super::http::Rest;
use super::ids::UserId;
use super::rates::RateClass;
use super::shard::Shard;
use super::store::Actor;
use super::tokens::Checked;
use crate::access::Right;
use crate::auth::{Identity, Role};
use crate::config::Store;
use crate::wire::client::ErrorCode;
use crate::wire::extensions::Terms;
use crate::wire::http::{Framing, Head};
use crate::wire::masking::mask_token;
use crate::wire::message::Author;
use crate::wire::response::put_switching_protocols;
use crate::wire::target::{Target, parse_target};
use crate::wire::upgrade::{Upgrade, upgrade};
use crate::wire::value::Id;

pub use super::rest::Gather;

/// The subprotocol that the server knows.
const SUBPROTOCOL: &str = "sizland.v1";
const TOO_MANY_CHECKS: &str = "too many tokens are being checked, try again";
/// In front of a token that travels as a subprotocol.
const BEARER_PROTOCOL: &str = "bearer.";

/// The body of a request.
pub enum Body<'a> {
    /// The request has none.
    Absent,
    /// All of it.
    Bytes(&'a [u8]),
    /// All of it, in the buffer of the decoder.
    Decoded,
    /// More than is taken; the rest was not read.
    TooLarge,
}

/// What became of a request.
pub enum Handled {
    /// The answer.
    Now(Rest),
    /// It comes from another shard.
    Pending,
    /// It comes in parts.
    Gather(Box<Gather>),
    /// The requests before it must be answered first, or its token is being checked: it stays unread.
    NotYet,
    /// The connection is no longer HTTP.
    Upgraded,
}

/// Who asks.
pub enum Caller {
    /// The ERP's backend, or another holder of the API key.
    Service,
    /// A user who may edit and delete the messages of others.
    Moderator(Id),
    /// A user.
    User(Id),
}

impl Caller {
    /// The user who asks, if it is one.
    pub fn user(&self) -> Option<&Id> {
        match self {
            Self::Service => None,
            Self::Moderator(user) | Self::User(user) => Some(user),
        }
    }

    /// The same as one who changes something durable.
    pub fn actor(&self) -> Actor {
        match self {
            Self::Service => Actor::Service,
            Self::Moderator(user) => Actor::Moderator(user.clone()),
            Self::User(user) => Actor::User(user.clone()),
        }
    }

    /// The same as one who writes a message.
    pub fn author(&self) -> Author<'_> {
        self.user().map_or(Author::Service, Author::User)
    }
}

/// One request, taken apart.
pub struct Call<'a> {
    /// The connection.
    pub slot: u32,
    /// The number of the request on it.
    pub number: u32,
    /// The method, with GET for HEAD.
    pub method: &'a str,
    /// The target with its query.
    pub target: Target<'a>,
    /// Who asks.
    pub caller: Caller,
    /// The user who asks, if it is one.
    pub user: Option<UserId>,
    /// The same, about a room where its home has to find out whether the one may.
    pub visitor: Option<UserId>,
    /// The body; empty if there is none.
    pub body: &'a [u8],
    /// What it counts as besides being a call.
    pub class: Option<RateClass>,
    /// The header `Idempotency-Key`.
    pub idempotency_key: Option<&'a str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Route {
    Socket,
    Health,
    Ready,
    RoomMessages,
    Messages,
    Message,
    Reaction,
    Online,
    RoomEvents,
    ReadState,
    Member,
    Members,
    Room,
    Rooms,
    Broadcast,
    User,
    UserRooms,
    UserEvents,
    Disconnect,
    Erase,
    Feed,
}

impl Route {
    fn of(segments: &[Cow<'_, str>]) -> Option<Self> {
        let segments: Vec<&str> = segments.iter().map(|segment| &**segment).collect();
        Some(match segments[..] {
            ["ws"] => Self::Socket,
            ["healthz"] => Self::Health,
            ["readyz"] => Self::Ready,
            ["api", "chat", "rooms", _, "messages"] => Self::RoomMessages,
            ["api", "chat", "messages"] => Self::Messages,
            ["api", "chat", "rooms", _, "messages", id] if !id.is_empty() => Self::Message,
            ["api", "chat", "rooms", _, "messages", _, "reactions", emoji] if !emoji.is_empty() => Self::Reaction,
            ["api", "chat", "rooms", _, "online"] => Self::Online,
            ["api", "chat", "rooms", _, "events"] => Self::RoomEvents,
            ["api", "chat", "rooms", _, "read", user] if !user.is_empty() => Self::ReadState,
            ["api", "chat", "rooms", _, "members", user] if !user.is_empty() => Self::Member,
            ["api", "chat", "rooms", _, "members"] => Self::Members,
            ["api", "chat", "rooms", room] if !room.is_empty() => Self::Room,
            ["api", "chat", "rooms"] => Self::Rooms,
            ["api", "chat", "broadcast"] => Self::Broadcast,
            ["api", "chat", "users", _] => Self::User,
            ["api", "chat", "users", _, "rooms"] => Self::UserRooms,
            ["api", "chat", "users", _, "events"] => Self::UserEvents,
            ["api", "chat", "users", _, "disconnect"] => Self::Disconnect,
            ["api", "chat", "users", _, "erase"] => Self::Erase,
            ["api", "chat", "events"] => Self::Feed,
            _ => return None,
        })
    }

    /// The methods, as the header `Allow` names them.
    fn allow(self) -> &'static str {
        match self {
            Self::Socket | Self::Health | Self::Ready => "GET, HEAD, OPTIONS",
            Self::Online | Self::Rooms | Self::User | Self::UserRooms | Self::Feed => "GET, HEAD, OPTIONS",
            Self::RoomMessages | Self::Messages => "GET, HEAD, POST, OPTIONS",
            Self::Message => "PATCH, DELETE, OPTIONS",
            Self::Reaction | Self::Member => "PUT, DELETE, OPTIONS",
            Self::ReadState | Self::Members => "GET, HEAD, PUT, OPTIONS",
            Self::Room => "DELETE, OPTIONS",
            Self::RoomEvents | Self::Broadcast | Self::UserEvents | Self::Disconnect | Self::Erase => "POST, OPTIONS",
        }
    }

    fn allows(self, method: &str) -> bool {
        self.allow().split(", ").any(|allowed| allowed == method)
    }

    fn is_open(self) -> bool {
        matches!(self, Self::Socket | Self::Health | Self::Ready)
    }

    fn is_for_users(self) -> bool {
        use Route::{Message, Messages, Online, Reaction, ReadState, RoomMessages};
        matches!(self, RoomMessages | Messages | Message | Reaction | Online | ReadState)
    }

    fn needs_body(self, method: &str) -> bool {
        match method {
            "POST" => !matches!(self, Self::Disconnect | Self::Erase),
            "PATCH" => true,
            "PUT" => matches!(self, Self::ReadState | Self::Members),
            _ => false,
        }
    }

    /// The room that a user asks about, and what is needed for that.
    fn room<'a>(self, method: &str, target: &Target<'a>) -> Option<(Cow<'a, str>, Right)> {
        let reads = matches!(method, "GET" | "HEAD") || self == Self::ReadState;
        let room = if self == Self::Messages { target.query("roomId") } else { target.segments.get(3).cloned() };
        Some((room?, if reads { Right::Read } else { Right::Write }))
    }

    /// What a user's call counts as besides being a call.
    fn class(self, method: &str) -> Option<RateClass> {
        match (self, method) {
            (_, "GET") => None,
            (Self::RoomMessages | Self::Messages | Self::Message, _) => Some(RateClass::Message),
            (Self::Reaction | Self::ReadState, _) => Some(RateClass::Reaction),
            _ => None,
        }
    }

    /// The user for whom the call asks to act, in whichever way it says so.
    fn named_user<'a>(self, target: &Target<'a>) -> Option<Cow<'a, str>> {
        match self {
            Self::ReadState => target.segments.get(5).cloned(),
            Self::Message | Self::Reaction => target.query("userId"),
            _ => None,
        }
    }
}

impl Shard {
    /// Handles one complete request; `is_first` says that none before it is unanswered. Returns with what became of it the
    /// user who asks, if it is one.
    pub(super) fn handle_http_request(
        &mut self,
        slot: u32,
        number: u32,
        head: &Head<'_>,
        framing: &Framing,
        body: &Body<'_>,
        is_first: bool,
    ) -> (Handled, Option<UserId>) {
        match self.read_call(slot, number, head, framing, body, is_first) {
            Ok((route, call)) => (self.dispatch(route, &call), call.user),
            Err(handled) => (handled, None),
        }
    }

    /// Takes a request apart, unless it is answered without being a call.
    fn read_call<'a>(
        &mut self,
        slot: u32,
        number: u32,
        head: &'a Head<'_>,
        framing: &Framing,
        body: &'a Body<'_>,
        is_first: bool,
    ) -> Result<(Route, Call<'a>), Handled> {
        let target = match parse_target(head.target) {
            Ok(target) => target,
            Err(reject) => return Err(error(reject.status, ErrorCode::InvalidMessage, reject.reason)),
        };
        let Some(route) = Route::of(&target.segments) else {
            if head.method == "OPTIONS" && head.target == "*" {
                return Err(Handled::Now(options("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")));
            }
            return Err(error(404, ErrorCode::NotFound, "there is nothing at this path"));
        };
        if head.method == "OPTIONS" {
            return Err(Handled::Now(options(route.allow())));
        }
        if !route.allows(head.method) {
            let mut rest = Rest::error(405, ErrorCode::InvalidMessage, "this path does not take this method");
            rest.headers.push(("Allow", route.allow().to_owned()));
            return Err(Handled::Now(rest));
        }
        if route == Route::Socket {
            return Err(self.handle_upgrade(slot, head, framing, is_first, |shard, wanted| {
                shard.open_websocket(slot, head, &target, wanted)
            }));
        }
        if route.is_open() {
            return Err(Handled::Now(self.health(route)));
        }
        let (caller, visitor) = self.caller(slot, head, route, &target)?;
        let user = visitor.clone().or_else(|| caller.user().map(|user| self.user_id(user)));
        let body = check_body(head, route, body).map_err(Handled::Now)?;
        let idempotency_key = head.header("idempotency-key").map(|key| str::from_utf8(key).unwrap_or_default());
        let method = if head.method == "HEAD" { "GET" } else { head.method };
        let class = route.class(method);
        Ok((route, Call { slot, number, method, target, caller, user, visitor, body, class, idempotency_key }))
    }

    fn dispatch(&mut self, route: Route, call: &Call<'_>) -> Handled {
        match (route, call.method) {
            (Route::RoomMessages, method) => {
                let room = call.target.segments.get(3).cloned().unwrap_or_default();
                if method == "GET" { self.list_messages(call, &room) } else { self.post_message(call, &room) }
            }
            (Route::Messages, method) => match call.target.query("roomId") {
                Some(room) if method == "GET" => self.list_messages(call, &room),
                Some(room) => self.post_message(call, &room),
                None => error(422, ErrorCode::InvalidMessage, "the query needs roomId"),
            },
            (Route::Message, "PATCH") => self.edit_message(call),
            (Route::Message, _) => self.delete_message(call),
            (Route::Reaction, method) => self.react(call, method == "PUT"),
            (Route::Online, _) => self.list_online(call),
            (Route::RoomEvents, _) => self.post_room_event(call),
            (Route::ReadState, "GET") => self.read_state(call),
            (Route::ReadState, _) => self.mark_read(call),
            (Route::Member, "PUT") => self.put_member(call),
            (Route::Member, _) => self.delete_member(call),
            (Route::Members, "PUT") => self.replace_members(call),
            (Route::Members, _) => self.list_members(call),
            (Route::Room, _) => self.remove_room(call),
            (Route::Rooms, _) => self.list_all_rooms(call),
            (Route::Broadcast, _) => self.post_broadcast(call),
            (Route::User, _) => self.describe_user(call),
            (Route::UserRooms, _) => self.list_rooms_of_user(call),
            (Route::UserEvents, _) => self.post_user_event(call),
            (Route::Disconnect, _) => self.post_disconnect(call),
            (Route::Erase, _) => self.erase_user(call),
            (Route::Feed, _) => self.read_feed(call),
            (Route::Socket | Route::Health | Route::Ready, _) => {
                error(404, ErrorCode::NotFound, "there is nothing here")
            }
        }
    }

    /// What is asked last of all of a call: whether there is room for it now.
    pub(super) fn turn_away(&mut self, call: &Call<'_>) -> Option<Handled> {
        if let Some(user) = &call.user
            && let Err(retry_ms) = self.charge_call(call.slot, user, call.class)
        {
            let mut rest = Rest::error(429, ErrorCode::RateLimited, "too many requests, slow down");
            rest.set_retry_after(retry_ms.div_ceil(1000));
            return Some(Handled::Now(rest));
        }
        self.is_quiescing().then(|| error(503, ErrorCode::Unavailable, "the server is stopping"))
    }

    fn health(&self, route: Route) -> Rest {
        let ready = |body: &str| Rest::json(200, body.as_bytes().to_vec());
        let unready = |body: &str| {
            let mut rest = Rest::json(503, body.as_bytes().to_vec());
            rest.headers.push(("Retry-After", "1".to_owned()));
            rest
        };
        let has_store = self.config.store != Store::None;
        let is_failing = has_store && self.gauges.is_store_failing();
        match route {
            Route::Ready if self.stage > Stage::Running => unready(r#"{"status":"draining"}"#),
            Route::Ready if is_failing && self.config.ready_requires_store => {
                unready(r#"{"status":"unready","store":"failing"}"#)
            }
            Route::Ready if is_failing => ready(r#"{"status":"ready","store":"failing"}"#),
            Route::Ready if has_store => ready(r#"{"status":"ready","store":"ok"}"#),
            Route::Ready => ready(r#"{"status":"ready"}"#),
            _ => ready(r#"{"status":"alive"}"#),
        }
    }

    /// Who asks, and whether they may, as far as it can be told here; for the rest the user goes along.
    fn caller(
        &mut self,
        slot: u32,
        head: &Head<'_>,
        route: Route,
        target: &Target<'_>,
    ) -> Result<(Caller, Option<UserId>), Handled> {
        let refuse = |text: &str| {
            let mut rest = Rest::error(401, ErrorCode::Forbidden, text);
            rest.headers.push(("WWW-Authenticate", "Bearer".to_owned()));
            Handled::Now(rest)
        };
        if let Some(given) = head.header("x-api-key") {
            if let Some(key) = self.credentials.api_keys.find(given) {
                tracing::debug!(key, method = head.method, call = ?route, address = %self.addresses.of(slot), "a service calls");
                return Ok((Caller::Service, None));
            }
            self.deny(slot, DenialReason::ApiKey, None, "");
            return Err(refuse("the API key is not known"));
        }
        // A browser has a certificate sent along with whatever a page of any origin asks for, and then names that origin.
        let is_certified = self.connections[slot].has(Flag::Certified) && head.header("origin").is_none();
        let Some(token) = bearer(head) else {
            if is_certified {
                return Ok((Caller::Service, None));
            }
            self.deny(slot, DenialReason::NoCredential, None, "");
            return Err(refuse("give X-API-Key, or Authorization: Bearer with a token"));
        };
        let identity = match self.check_token(slot, token) {
            Checked::Good(identity) => identity,
            Checked::Bad => return Err(refuse("the token does not verify")),
            Checked::Busy => return Err(error(503, ErrorCode::Overloaded, TOO_MANY_CHECKS)),
            Checked::Later => return Err(Handled::NotYet),
        };
        self.user_caller(slot, head, route, target, &identity)
    }

    /// What a user may, as far as the token says it.
    fn user_caller(
        &mut self,
        slot: u32,
        head: &Head<'_>,
        route: Route,
        target: &Target<'_>,
        identity: &Identity,
    ) -> Result<(Caller, Option<UserId>), Handled> {
        let visitor = match route.room(head.method, target).filter(|_| route.is_for_users()) {
            Some((room, right)) => self.visitor(identity, &room, right),
            None => Ok(None),
        };
        let mut forbid = |user: &str, text: &str| {
            self.deny(slot, DenialReason::Forbidden, Some(user), text);
            Err(error(403, ErrorCode::Forbidden, text))
        };
        let user = match (identity.role, &identity.user) {
            (Role::Service, _) => return Ok((Caller::Service, None)),
            (_, Some(user)) if route.is_for_users() => user.clone(),
            (_, user) => return forbid(user.as_ref().map_or("", Id::text), "this call is for services"),
        };
        if route.named_user(target).is_some_and(|named| named != user.text()) {
            return forbid(user.text(), "a user may do this only as oneself");
        }
        let visitor = match visitor {
            Ok(visitor) => visitor,
            Err(level) => return forbid(user.text(), denial(level).1),
        };
        let caller = if identity.role == Role::Moderator { Caller::Moderator(user) } else { Caller::User(user) };
        Ok((caller, visitor))
    }

    /// Whether the connection may become a WebSocket; `open` makes it one.
    pub(super) fn handle_upgrade(
        &mut self,
        slot: u32,
        head: &Head<'_>,
        framing: &Framing,
        is_first: bool,
        open: impl FnOnce(&mut Self, &Upgrade<'_>) -> Handled,
    ) -> Handled {
        let wanted = match upgrade(head, framing) {
            Ok(wanted) => wanted,
            Err(reject) => {
                let mut rest = Rest::error(reject.status, ErrorCode::InvalidMessage, reject.reason);
                rest.headers.extend(reject.headers().iter().map(|&(name, value)| (name, value.to_owned())));
                return Handled::Now(rest);
            }
        };
        if !self.config.origins.allows(origin(head)) {
            self.deny(slot, DenialReason::Origin, None, origin(head).unwrap_or_default());
            return error(403, ErrorCode::Forbidden, "this origin may not connect");
        }
        if !is_first || !self.connections[slot].outbox.is_empty() {
            // Also so that nothing but frames stands behind the answer to the upgrade.
            return Handled::NotYet;
        }
        if self.is_quiescing() {
            return error(503, ErrorCode::Unavailable, "the server is stopping");
        }
        if !self.gauges.enter(self.config.limits.connections_max) {
            return error(503, ErrorCode::Overloaded, "the server has as many connections as it takes");
        }
        self.connections[slot].mark(Flag::Counted);
        open(self, &wanted)
    }

    fn open_websocket(&mut self, slot: u32, head: &Head<'_>, target: &Target<'_>, wanted: &Upgrade<'_>) -> Handled {
        let offered = |protocol: &str| wanted.protocols.contains(&protocol);
        let known = offered(SUBPROTOCOL);
        let deflate = wanted.deflate.filter(|_| self.config.deflate);
        let extensions = deflate.map(Terms::answer);
        let mut answer = Vec::with_capacity(192);
        let protocol = known.then_some(SUBPROTOCOL);
        put_switching_protocols(&mut answer, &wanted.accept, protocol, extensions.as_deref());
        self.connections[slot].set_window_bits(deflate.map_or(0, |terms| terms.window_bits));
        let in_query = target.query("token").filter(|token| !token.is_empty());
        let in_protocol = || wanted.protocols.iter().find_map(|protocol| protocol.strip_prefix(BEARER_PROTOCOL));
        let token: Option<Cow<'_, str>> =
            in_query.or_else(|| bearer(head).map(Cow::Borrowed)).or_else(|| in_protocol().map(Cow::Borrowed));
        let Some(token) = token else {
            let conn = &mut self.connections[slot];
            self.pool.append_direct(&mut conn.outbox, |out| out.extend_from_slice(&answer));
            conn.phase = Phase::Auth;
            self.wheel.set(slot, self.now.tick_ms + self.config.limits.auth_ms);
            self.mark_express(slot);
            if !known {
                self.close(slot, &CloseReason::NoToken);
            }
            return Handled::Upgraded;
        };
        let identity = match self.check_token(slot, &token) {
            Checked::Good(identity) => Some(identity),
            Checked::Bad => None,
            Checked::Busy => return self.not_opened(slot, error(503, ErrorCode::Overloaded, TOO_MANY_CHECKS)),
            Checked::Later => return self.not_opened(slot, Handled::NotYet),
        };
        let Some((identity, user)) = identity.and_then(|identity| identity.user.clone().map(|user| (identity, user)))
        else {
            tracing::debug!(url = &*mask_token(head.target), "a WebSocket whose token is not valid");
            let conn = &mut self.connections[slot];
            self.pool.append_direct(&mut conn.outbox, |out| out.extend_from_slice(&answer));
            conn.phase = Phase::Auth;
            self.close(slot, &CloseReason::InvalidToken);
            return Handled::Upgraded;
        };
        match self.admit(slot, &user, &identity, answer, None) {
            Ok(()) => Handled::Upgraded,
            Err(_) => self.not_opened(slot, error(503, ErrorCode::Overloaded, "too many are connecting, try again")),
        }
    }

    /// The connection has not become a WebSocket, at least not yet.
    fn not_opened(&mut self, slot: u32, handled: Handled) -> Handled {
        self.connections[slot].unmark(Flag::Counted);
        self.gauges.leave();
        handled
    }
}

/// The page that a request comes from, if it comes from one. What no browser sends, such as two of them, is the page of
/// nobody, and not the absence of one.
pub(super) fn origin<'b>(head: &Head<'b>) -> Option<&'b str> {
    let mut values = head.header_values("origin");
    let first = values.next()?;
    Some(if values.next().is_some() { "" } else { str::from_utf8(first).unwrap_or_default() })
}

/// The token of `Authorization: Bearer`.
fn bearer<'b>(head: &Head<'b>) -> Option<&'b str> {
    let value = head.header_str("authorization")?;
    let (scheme, token) = value.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty()).then(|| token.trim())
}

fn check_body<'a>(head: &Head<'_>, route: Route, body: &Body<'a>) -> Result<&'a [u8], Rest> {
    let bytes = match body {
        Body::TooLarge => return Err(Rest::error(413, ErrorCode::TooLarge, "the body is larger than is accepted")),
        Body::Absent if route.needs_body(head.method) => {
            return Err(Rest::error(411, ErrorCode::InvalidMessage, "give Content-Length, or send chunks"));
        }
        Body::Absent | Body::Decoded => &[][..],
        Body::Bytes(bytes) => bytes,
    };
    let media = head.header("content-type").map(|value| {
        let essence = value.split(|&byte| byte == b';').next().unwrap_or_default();
        essence.trim_ascii().to_ascii_lowercase()
    });
    let is_json = media.is_none_or(|media| media == b"application/json" || media.ends_with(b"+json"));
    if !bytes.is_empty() && !is_json {
        return Err(Rest::error(415, ErrorCode::InvalidMessage, "send Content-Type: application/json"));
    }
    Ok(bytes)
}

fn options(allow: &str) -> Rest {
    let mut rest = Rest::json(204, Vec::new());
    rest.headers = vec![
        ("Allow", allow.to_owned()),
        ("Access-Control-Allow-Methods", allow.to_owned()),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type, Idempotency-Key, X-API-Key".to_owned()),
        ("Access-Control-Max-Age", "600".to_owned()),
    ];
    rest
}

/// An error, at once.
pub(super) fn error(status: u16, code: ErrorCode, text: &str) -> Handled {
    Handled::Now(Rest::error(status, code, text))
}
