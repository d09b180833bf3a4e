//! Sizland Chat: a real-time chat server for very many WebSocket connections.
//!
//! This page is the architecture document: how the program is put together, why, and what must stay true. How to run
//! it, its protocol and its configuration stand in `README.md`.
//!
//! # Bird's eye
//!
//! A process has one port and a fixed number of threads that serve it. Each runs one event loop, a *shard*: it owns the
//! connections that it accepted and speaks HTTP and WebSocket with them. Each room has one shard as its *home*, found
//! by a keyed hash of its name; only the home knows the room's sequence, presence and typing, and only it makes the
//! room's events. A user has a home as well, which counts the user's connections. Shards share no state: they send each
//! other values through bounded mailboxes.
//!
//! Five layers, of which an upper one uses a lower one and never the reverse:
//!
//! ```text
//! server     threads, mailboxes, the order of starting and stopping
//! work       threads that may block: the store, crews for other jobs, files that may change
//! reactor    the turn: poll, read, write, post; the only system calls of the loops
//! chat       the chat itself: bytes and time come in, bytes, envelopes and jobs go out
//! wire       bytes to values and back
//! ```
//!
//! [`chat`] and [`wire`] are deterministic: the same calls give the same bytes. That is what makes a shard testable
//! without a socket, and a simulation of a whole server possible in one thread.
//!
//! # The path of a message
//!
//! ## A post, from socket to socket
//!
//! 1. The poll reports the ERP's socket as readable. [`Reactor::turn`](reactor::turn::Reactor::turn) sets the latch of
//!    the connection, reads into the one buffer of the thread, and hands the bytes to
//!    [`Shard::handle_input`](chat::shard::Shard::handle_input).
//! 2. The connection speaks HTTP, so `http_input` finds the request: [`parse_head`](wire::http::parse_head) and, for a
//!    chunked body, [`ChunkedDecoder`](wire::body::ChunkedDecoder). The request gets a number in the connection's ring.
//! 3. `handle_http_request` checks path, method, credential, rights, length and media type in this order, and
//!    dispatches to `post_message`. [`parse_posted`](wire::message::parse_posted) validates the body and takes a digest
//!    of its JSON value; [`new_message_prefix`](wire::message::new_message_prefix) encodes all of the event but
//!    `timestamp` and `seq`.
//! 4. [`home`](chat::ids::home) names the room's home. [`Mail::request`](chat::mail::Mail::request) takes a credit and
//!    posts [`RoomAsk::Change`](chat::envelope::RoomAsk::Change); the ring notes that the answer is
//!    [`Pending`](chat::routes::Handled::Pending). At the end of the turn everything for one target leaves as one
//!    [`Batch`](chat::envelope::Batch), with at most one wake.
//! 5. At the home, [`Shard::handle_batch`](chat::shard::Shard::handle_batch) finds the room in `RoomHomes` and calls
//!    [`Room::handle_ask`](chat::room::Room::handle_ask). With a store the change goes to the
//!    [`Desk`](chat::desk::Desk), leaves at the end of the turn as a [`Job`](chat::job::Job), and comes back as a
//!    [`Verdict`](chat::store::Verdict) once it is committed (see below); without,
//!    [`Orderer::decide`](chat::orderer::Orderer::decide) gives the verdict at once. What is new has the next `seq`, and
//!    one finished frame is appended to the room's [`Burst`](chat::burst::Burst). The answer is noted, not sent.
//! 6. Behind all input of the turn, [`Shard::freeze`](chat::shard::Shard::freeze) asks each room that has something to
//!    say for its [`Frozen`](chat::room::Frozen) turn: the burst goes once to each shard with members, and behind it go
//!    the answers.
//! 7. At a shard with members, `deliver` takes each segment into the [`OutboxPool`](chat::outbox::OutboxPool)
//!    ([`hold`](chat::outbox::OutboxPool::hold)) and [`link`](chat::outbox::OutboxPool::link)s it to the outbox of each
//!    member: a few integers per member, no copy. The members enter the [`SendQueues`](chat::queues::SendQueues).
//! 8. The same turn ends with the writes: [`Shard::poll_transmit`](chat::shard::Shard::poll_transmit) names a
//!    connection, [`Shard::gather`](chat::shard::Shard::gather) lays its unsent bytes out for one vectored write of at
//!    most 256 KiB, and [`Shard::handle_sent`](chat::shard::Shard::handle_sent) takes off what the socket took.
//! 9. The answer, [`Published`](chat::envelope::Answer::Published), reaches the poster's shard and by connection and
//!    request number its place in the ring; `answer_http` renders it, and what is ready at the front of the ring leaves
//!    in order.
//!
//! If home and connection are on the same shard, nothing changes but the way: what a shard posts to itself waits in a
//! queue of its [`Mail`](chat::mail::Mail) and is handled in the same turn, before the freeze if it is a request and
//! behind it if it is a burst or an answer.
//!
//! ## A reaction
//!
//! `websocket_input` runs the [decoder](wire::decoder::decode) over the bytes, which unmasks in place; `handle_message`
//! charges the rate limit and [parses](wire::client::parse) the payload into a [`Request`](wire::client::Request).
//! Everything that is about a room passes `ask_about_room`: behind a pending join it is parked in the join's entry; in
//! a room that was not joined it is answered `not_in_room`; otherwise it is posted to the room's home as above. If it
//! carried a `ref`, the home's answer comes back as [`ReplyTo::Reference`](chat::envelope::ReplyTo::Reference) behind
//! the burst, so an `ack` follows the event that it acknowledges.
//!
//! ## A join
//!
//! The join is *pending* from the `Subscribe` to its answer, in a bounded table of the connection's shard that outlives
//! the connection. The home counts the user and the shard at once, but the burst of this turn goes only to those who
//! had been told before: [`Interest`](chat::presence::Interest) knows who is *untold*. Then it answers `Subscribed`
//! with an `online_update` that is one shared frame for all joiners of the turn. The shard adds the member, sends it
//! its own `user_joined` and the `online_update`, and takes up what was parked. From home to shard everything stays in
//! order; so what comes next is live, nothing is missing and nothing comes twice.
//!
//! Who may enter is decided by one function, [`decide`](access::decide). Where the token settles it, the shard of the
//! connection does; otherwise the user goes along with the question as its *visitor*, and the home finds out, by asking
//! the store once, or the ERP ([`work::authorizer`]), whose answer it keeps for its time in [`Permits`](chat::permits::Permits). All changes of a room's memberships pass its home too, in the order of the store, and while one is
//! under way what the user asks waits for the verdict. So a revocation and what is asked beside it have one order. It is
//! answered when the shards concerned have dismissed the user's connections.
//!
//! ## Through the store
//!
//! The home stamps a change with its time and keeps it, shared, until it has a verdict. `work::writer` takes what all
//! shards have handed out, decides it in one transaction and commits it once (group commit); then each shard gets its
//! verdicts in the order of its writes, so they need no number. The room settles them in that order: an event is
//! delivered, and its sender answered, only when it is on the disk. A failed batch is refused as a whole, and a retry
//! with the same id finds out what there is. If a verdict's `seq` is not the next one, the answer of an earlier commit
//! was lost: the room reads those events and emits them first.
//!
//! Who comes back is sent what it has missed from the room's [`History`](chat::history::History): the very frames that
//! the bursts froze, linked to the outbox without a copy. Where it does not reach back, it is filled from the store
//! first, once for all who wait; the join is parked meanwhile, so that it is answered at the boundary of a burst like
//! any other. History pages and the feed are read and rendered by `work::reader`, off the loops.
//!
//! A room that nobody is in leaves memory; the next ask for it reads its position first.
//!
//! # Code map
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`config`], [`error`], [`auth`], [`log`], [`dev`] | one configuration, valid by construction, from flag, environment, `.env`, TOML and defaults, with every limit; what stops a start; tokens, keys and API keys; the log's queue; what `--dev` prints |
//! | [`access`] | who may enter which room: rules by pattern, what a token grants, and the one decision |
//! | [`server`] | threads, mailboxes, signals, the phases of stopping |
//! | [`reactor::turn`] | the turn, its budgets and latches |
//! | [`reactor::tls`], [`reactor::unfinished`] | TLS sessions, and the records on their way; who is closed when those take too much |
//! | [`reactor::io`], [`reactor::mio_io`] | what the turn needs of the world; sockets, listener, poll and clock by mio |
//! | `allocator` | keeps large blocks apart, gives free memory back to the system |
//! | [`reactor::mailbox`], [`reactor::neighbours`] | a bounded crossbeam channel and its wake flag; when the core is given to another thread |
//! | [`reactor::moderation`] | when a loop with nothing but pings rests before it polls |
//! | [`chat::shard`] | [`Shard`](chat::shard::Shard), the owner of everything below, and its `handle_*` and `poll_*` |
//! | [`chat::connection`], [`chat::tables`], [`chat::ids`] | the slab of connections; users and rooms with members here, by number; handles and names |
//! | [`chat::http`], [`chat::routes`], `chat::rest` | an HTTP connection and its ring; which call is what and who may; what the calls do |
//! | `chat::session`, `chat::admission`, `chat::membership` | a WebSocket's messages and its rate; from a token to `connected`; joins, leaves and the delivery of bursts |
//! | `chat::entry`, `chat::room::gate`, [`chat::permits`] | who may enter a room: as far as a token says it; where the room's home has to know; what the ERP has said |
//! | `chat::homes`, [`chat::room`], [`chat::presence`], [`chat::typing`], [`chat::burst`] | the home side of rooms |
//! | [`chat::job`] | what a shard hands to threads that may block, of whatever kind |
//! | [`chat::store`], [`chat::desk`], [`chat::orderer`], [`chat::history`] | what is said between shards and store; what is under way; who decides where there is none; recent events in memory |
//! | [`chat::rates`] | what connections and users may send; their debts, also over reconnects and threads |
//! | [`chat::address_homes`] | the home side of addresses: how many connections come from each, and how fast |
//! | [`chat::user_homes`], [`chat::revocations`] | the home side of users; whose older tokens are refused |
//! | [`chat::tokens`], [`chat::errands`] | the check of a token, now or later; what is under way to the crews |
//! | [`chat::envelope`], [`chat::mail`] | what shards tell each other; credits, windows and what waits for the end of the turn |
//! | [`chat::outbox`], [`chat::queues`] | what waits to be sent, and who gets to |
//! | [`chat::slack`] | gives back what a storm left behind |
//! | [`chat::wheel`], `chat::liveness` | deadlines; pings, silence and expiry |
//! | [`chat::closing`], [`chat::drain`] | how a connection ends, and how all do |
//! | [`chat::denial`], [`chat::addresses`], `chat::proxied` | the record of who was refused what, at a limited rate; from where connections come; what trusted proxies say about that |
//! | [`chat::echo`] | what answers instead of the chat in `tools/echo`, for conformance suites |
//! | [`wire::http`], [`wire::body`], [`wire::target`], [`wire::response`], [`wire::upgrade`] | HTTP/1.1, strictly |
//! | [`wire::proxy`] | the PROXY header and `X-Forwarded-For` |
//! | [`wire::decoder`], [`wire::websocket`], `wire::mask`, `wire::utf8` | RFC 6455 |
//! | [`wire::deflate`], [`wire::extensions`] | RFC 7692: compressed messages; what is agreed about them in the handshake |
//! | [`wire::client`], [`wire::event`], [`wire::message`], [`wire::rest_body`], [`wire::value`], `wire::object`, `wire::digest`, `wire::timestamp`, [`wire::stored`] | the JSON vocabulary; peer JSON is split into members, not parsed into trees |
//! | [`work::database`], [`work::schema`], [`work::ledger`], `work::places`, `work::members`, `work::room`, [`work::reader`], [`work::retention`] | the store: the file and its checks; its tables; what is decided and kept in one transaction; where messages are, by their ids; memberships; the row of a room; what is read; what is removed |
//! | [`work::store`], `work::writer`, `work::readers`, `work::checkpointer`, `work::log_file`, `work::connections`, [`reactor::jobs`] | the store's threads: batches and their verdicts; lookups; the log, and its file; their connections; the way to them |
//! | [`work::certificates`] | the files of TLS, read and checked |
//! | [`work::revocations`] | whose older tokens are refused, kept over a restart |
//! | [`work::crew`], [`work::fetch`], [`work::authorizer`] | threads for jobs of one kind, fair between shards; questions to others over HTTP; who may enter, as the ERP says |
//! | [`work::keyring`] | the keys in force: where they come from and when that is looked at again |
//! | [`work::watch`] | what is read again when its file changes, or on SIGHUP |
//! | [`work::backup`], [`work::transfer`], [`work::import`], `work::import_line` | a copy while it is written; the store as lines of JSON, and back |
//!
//! Outside of `src`: `tests/end_to_end` drives the real binary, `benches/compare` measures it against other servers,
//! `tools/load` is the load generator, `tools/clients` are foreign clients, `tools/million` holds a million sockets, and
//! `tools/echo` is what conformance suites are pointed at.
//!
//! # Who owns what
//!
//! - **A connection belongs to one shard.** [`ConnId`](chat::ids::ConnId) is shard, generation and slot, and at once
//!   the token in the poll, so an event or an answer for a slot that has a new owner is seen as stale.
//! - **A room belongs to its home.** Presence is user to count per *source*, a source being a shard; interest is
//!   members per shard.
//! - **A shard with members of a room owns the list of them**: slot and the user's number on this shard, so leaving out
//!   a user is one comparison in the array that is walked anyway.
//! - **A user belongs to its home**, which admits each connection before it is greeted and closes the one silent
//!   longest when there are too many.
//! - The socket of a slot belongs to the [`Io`](reactor::io::Io), its latch to the [`Reactor`](reactor::turn::Reactor),
//!   its deadline to the [`Wheel`](chat::wheel::Wheel), its unsent bytes to the pool: arrays side by side, indexed by
//!   slot.
//!
//! # Invariants
//!
//! - **Every denial passes [`chat::denial`]**, which bounds how much is logged, and peers' text is logged as values only.
//! - **[`chat`] knows no clock, socket or thread**, and draws ids and epochs only from its seed. [`wire`] knows no
//!   connection, room or time either. A [`Now`](chat::Now) comes with each turn: monotonic milliseconds for deadlines,
//!   wall milliseconds for timestamps and expiry.
//! - **The [`reactor`] knows no room, user or message**: it moves bytes, envelopes and readiness.
//! - **Only [`server`] knows how many threads there are** when it starts and ends them; a shard knows the number as the
//!   divisor of hashes, and the turn as the number of targets.
//! - **A turn blocks only in the poll.** There is no lock, and no cache line that two threads write per delivery; the
//!   shared [`Gauges`](chat::shard::Gauges) change when a WebSocket opens or closes.
//! - **A room's events are made by its home alone**, and `seq` has no holes.
//! - **With a store, nothing durable is delivered or acknowledged that is not committed**, and the loops never wait for it:
//!   what is under way is bounded, and the next is refused.
//! - **The home of a room knows sources, never the connections behind them**, but for the one that holds a user's
//!   typing.
//! - **Who may enter a room is decided by one function**, and what is not known grants nothing. No join and no write that
//!   is under way outlives the answer to a revocation.
//! - **A burst crosses a thread boundary once per shard, never once per member**, and answers follow the burst.
//! - **For each `Subscribed` there is exactly one `Unsubscribe`, never before it.**
//! - **Each request has exactly one answer**, or its connection is closed. HTTP answers leave in the order of the
//!   requests.
//! - **What a connection sends about a room takes effect in the order sent.**
//! - **Durable events are never dropped** for a connection that stays open; typing and presence may be, and then it is
//!   told (`shed`) and gets a fresh `online_update`.
//! - **A message is compressed once**, never per member, and no connection owns a window.
//! - **A frame is never cut**: also a connection that is closed while behind gets the rest of the frame begun, then
//!   Close.
//! - **An idle connection owns no buffer.** Unfinished input and HTTP state live in
//!   [`Extra`](chat::connection::Extra), which is freed when empty.
//! - **A slot is freed only at the end of a turn.**
//! - **Maps are keyed** with a secret of the process, where their keys come from peers.
//! - **Peer input never panics.** There is no `unsafe` but two calls in `allocator`.
//! - **A peer's fault is a [`CloseReason`](chat::closing::CloseReason) or an `error`, an operator's an
//!   [`Error`](error::Error) at the start, a bug an assertion.**
//!
//! # Readiness and budgets
//!
//! Sockets are registered once, for both directions and edge-triggered. Readiness is a latch per connection, cleared
//! only by `WouldBlock`, or for reading by a short read while the peer has not ended its side: data and end together
//! give one event, and no other ever comes. Whoever stops early, because a budget is used up or the connection is
//! paused, keeps the latch and stays queued. Writes are tried first; writability is waited for only by a connection
//! whose socket refused.
//!
//! Posts, accepts, input bytes, handshakes, timers, what the shard tells itself, and writes each have a budget per turn.
//! Connections with an answer, or in rooms with at most 64 members here, are flushed from the *express* queue; those
//! of larger rooms from the *bulk* queue, 16 a turn, so that a room of ten thousand does not stand in front of every
//! small one. A turn between the shares takes new messages in, which join what those who still wait are sent: the busier a
//! large room, the fewer its writes. Among themselves large rooms take turns of 512 writes. The order of bytes within a
//! connection is its outbox's and does not depend on the queue.
//!
//! Where there are more threads than cores, a loop with work left and no posts of its own gives its core away between two
//! turns ([`reactor::neighbours`]): to a loop that has input or posts, or now and then, and to the store's writer while that
//! owes it answers. What it gets back joins the writes that are left.
//!
//! A loop that for a second has said nothing but pings rests for a millisecond behind a burst of them, and reads the pongs
//! with one poll ([`reactor::moderation`]).
//!
//! # TLS
//!
//! Bytes pass [`Io::read`](reactor::io::Io::read) and [`Io::write`](reactor::io::Io::write) and nowhere else, and there
//! stands [`Tls`](reactor::tls::Tls) where a certificate is configured; the chat knows one bit of it, that a peer has shown
//! a certificate that is trusted. Sessions are rustls's unbuffered ones and own keys only: records are opened and
//! sealed in buffers of the thread, and of one connection at most a record in either direction is kept, against a pool for
//! each. Of a full one the oldest records are dropped at once; that their connections are over, and that a record is
//! overdue, is found by a read, to which the poll leads by an event of its own.
//!
//! The latches stay true since no more is read at once than the turn's buffer takes, so that all that can be opened is, and
//! since what is short is what the *socket* had less of than it was asked for. What is sealed cannot be taken back, so it
//! counts as sent; if the socket refused its end, the connection is blocked even if its outbox is empty, and is not
//! closed before that has gone ([`has_unsent`](chat::connection::Connection::has_unsent)).
//!
//! A connection that is in its handshake waits in a queue of its own, of which a turn reads few: a signature may cost as
//! much as four hundred messages. A session is made with the first byte that comes.
//!
//! # Backpressure
//!
//! Between shards there are three kinds of [`Envelope`](chat::envelope::Envelope). A *request* takes a credit of the
//! pair (source, target) and is refused without one (`overloaded`, 503). A *reply* brings the credit back, so replies
//! are bounded by requests. An *obligation* is never refused: an `Unsubscribe` is bounded by the memberships that there
//! are, bursts and events for users by a window of bytes per pair; a revocation that the store is to keep goes to every
//! shard as a request that needs [no credit](chat::mail::Mail::oblige). While a window is shut the rooms with members behind
//! it are not frozen; their bursts grow to a limit, then they refuse publishes and collapse presence into one list. A
//! batch that a full mailbox refuses is held and tried again each turn, at the latest after 2 ms. The loops never wait
//! for each other.
//!
//! Towards clients: above the soft limit of an outbox ephemeral segments are counted instead of linked; a member that
//! has reached the hard limit when something is delivered is closed with 4008. A connection that ends while its socket
//! refuses bytes is reset, since the kernel would keep for minutes what nobody reads. The bytes of segments (each counted once
//! however many wait for it), of direct answers and of unfinished input stand in pools with a limit each, a shard
//! having its share: of those that hold output up the ones furthest behind are closed first, of unfinished input the
//! oldest. Pipelined HTTP above 32 requests, or above the soft limit, is not read; a WebSocket always is, since two
//! ends that wait for each other to read would wait for ever. [`memory_bound`](config::memory_bound) adds the limits
//! up.
//!
//! Peers that send too much are refused by [`chat::rates`], at the shard of their connection and without asking anybody. A
//! user's debts go to the user's home with each connection that ends, and come back with the next admission; who takes
//! more than a shard's part of the rate is told of once a second. So a limit costs no message, and no memory for those
//! who keep it.
//!
//! # Compression
//!
//! permessage-deflate is agreed without context takeover on either side, so a connection keeps four bits of it: the
//! width of the window that its client allows. Each thread has one [`Deflater`](wire::deflate::Deflater) and one
//! [`Inflater`](wire::deflate::Inflater) for all its connections.
//!
//! A room's home knows how many members take what is compressed. While there is one it gives each segment, when it
//! freezes it, a second variant in which every message of at least `deflate_threshold_bytes` that shrinks is compressed:
//! once, and [shared](chat::burst::Frames) by all threads and members like the plain one. A reference back never reaches
//! beyond the start of its message, so the variant needs no more window than its longest message is long; a member whose
//! window is narrower gets the plain variant, which costs one comparison per member and segment. What goes to one
//! connection alone is compressed for its own window.
//!
//! The decoder passes a compressed message on as it came. It is inflated into one buffer of the thread, up to the limit
//! of a message, before it is parsed.
//!
//! # Timers and liveness
//!
//! The [`Wheel`](chat::wheel::Wheel) has ticks of 250 ms and one deadline per slot; what it is for follows from the
//! connection's [`Phase`](chat::connection::Phase) when it fires. Traffic only notes the tick and clears a flag, it
//! never touches the wheel. An open connection is pinged once per interval, counted from its opening, and ended if it
//! has not been heard when the next ping is due, unless input is waiting to be read, we have paused it, or the loop
//! itself was late: a turn that begins more than a second late suspends the judgement for as long. Rooms have a wheel
//! of their own for typing, presence differences and their end. The pings of a tick are one segment, and go out in
//! bursts of a turn's budget, so that what comes meanwhile waits for one burst at most.
//!
//! # Stopping
//!
//! [`server`] names each [`Stage`](chat::drain::Stage) to all shards and waits until all report it done, or its time is
//! over:
//!
//! - *Notice*: `/readyz` says 503, everything else goes on.
//! - *Quiesce*: whoever is waiting in the backlog is accepted and the listeners close. New REST calls, upgrades and what
//!   WebSockets ask about rooms are refused; what was asked is answered; presence and typing fall silent.
//! - *Close*: each WebSocket gets `draining` and Close 1001 in its moment of the window; what is left at its end is
//!   closed.
//! - *Settle*: every request is answered, every burst taken over.
//! - *Store*: the last transaction is committed and the log written back, by the store's threads alone, in a bounded time.
//!   Then all threads end.
//!
//! # The store's threads
//!
//! A shard's jobs for the store ([`store::Job`](chat::store::Job)) leave at the end of its turn through [`Jobs`](reactor::jobs::Jobs), and the
//! answers come back through its mailbox. One thread writes: all that waits is one batch, one batch one transaction, and
//! each shard gets one post of verdicts per transaction. Two threads read, on connections of their own. One writes the
//! log back into the database, so that the writer never waits for the database's fsyncs; it is nice to all others, as it
//! works for milliseconds at a time. Only these threads block, and only they wait for a full mailbox.
//!
//! When a transaction fails all of its batch is refused, and so is what comes next, until a probe succeeds: a quarter of
//! a MiB beside the database, and a transaction that changes nothing, once a second. An error of the file rather than of
//! the space on the disk makes a thread take another connection. The gauges tell `/readyz`.
//!
//! # What is read again
//!
//! [`work::watch`] looks once a second whether a file that was [added](work::watch::Watch::add) is another one, and reads
//! everything again on SIGHUP. What was read is checked there and reaches the shards as a [`Post`](reactor::io::Post), so
//! it takes effect between two inputs of a turn; what cannot be used is a warning, and what is in force stays so.
//!
//! # Tokens
//!
//! What is signed with a secret is verified where it arrives. A public key takes too long for a loop: the token becomes a
//! [`Job`](chat::job::Job) of the crew `tokens`, and the connection has the mark `Checking` and is not read until the answer
//! is there, so that what the client sends behind a token takes effect behind it. An HTTP request stays unread and is read
//! again; a message is kept. What may be under way is bounded, and so is what is remembered of tokens that verified.
//!
//! [`Credentials`](auth::Credentials) are immutable and shared. [`work::keyring`] makes new ones when a file or a fetched
//! key set changes and posts them to every shard, which then forgets what it remembered. A `kid` that nobody knows is
//! a job as well: the thread that fetches asks once more, if it may, posts what is new and then the answer. Of either kind an address
//! has a [share](chat::errands::Errands) of its own, so that it cannot hold up the tokens of others.
//!
//! # Seams
//!
//! Not built, but nothing should make them hard:
//!
//! - **Other stores**: a shard knows jobs and answers, not who works on them.
//! - **Other ways to find out who may enter a room**: a [`Mode`](access::Mode) more, whose answer comes to the gate as the
//!   store's does.
//! - **Several nodes**: presence is per source and [`Room::source_ended`](chat::room::Room::source_ended) removes one
//!   in a step; a node would be a source with a lease.
//! - **Hand-over to a new process**: *Settle* leaves a state with nothing in flight; without *Close* before it, it
//!   could be written down.
//!
//! # Why it is so
//!
//! - **Parked messages wait at the connection's shard**, in the entry of the pending join, rather than behind the
//!   Subscribe at the home: so a home never holds anything for a connection that it does not know, and the limit per
//!   join is looked at where the message arrives. The price is that they take one more way between shards when the join
//!   is answered.
//! - **A user's connections are admitted before they are greeted**, so that `connected` carries the id in the form of
//!   the user's first connection, and the limit per user holds over all shards.
//! - **No context takeover**: a window per connection would cost each idle one 32 KiB a side, and a message for a room
//!   would have to be compressed for each member. Within one JSON text there is still most of what can be saved.
//! - **tungstenite decodes nothing here**: its `WebSocketContext` owns a read buffer per connection and copies each
//!   message. Its handshake key and close codes are used.
//! - **A WebSocket's deadline is moved in the wheel rather than left to be found stale**, since that happens a few
//!   times in its life and not per message. An HTTP connection's changes with each request, so there the timer is
//!   only ever moved to an earlier time; a later deadline is found when it fires.

#![deny(unsafe_code)]

pub mod access;
mod allocator;
pub mod auth;
pub mod chat;
pub mod config;
pub mod dev;
pub mod error;
pub mod log;
#[doc(hidden)]
pub mod planted;
pub mod reactor;
pub mod server;
pub mod wire;
pub mod work;
