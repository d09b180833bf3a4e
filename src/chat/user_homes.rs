//! The home side of users: which connections each has, on which shards, and in which form its id goes out.
//!
//! A new connection is admitted here before it is greeted. Above the limit it is served all the same, and the connection
//! of the user that has been silent longest is closed in its place: the shards that own the connections are asked how
//! long each has been silent, one round at a time.

use hashbrown::HashTable;
use slab::Slab;

use super::envelope::{Answer, Ask, Envelope, Origin, Reply, ReplyTo, Request, ShardAsk, UserAsk};
use super::ids::{ConnId, ShardId, UserId};
use super::shard::Shard;
use super::slack::{give_back_slab, give_back_table};
use crate::wire::client::ErrorCode;

/// A user of one connection: 24 bytes, or the place of its list among those of [`UserHomes`].
struct HomeUser {
    user: UserId,
    conn: ConnId,
}

impl HomeUser {
    /// Where the user's list stands, if it has or had more than one connection.
    fn many(&self) -> Option<usize> {
        (self.conn.shard() == ShardId::NOWHERE).then_some(self.conn.slot() as usize)
    }
}

/// The connections of a user that has more than one.
#[derive(Default)]
struct Many {
    conns: Vec<ConnId>,
    /// Told to close, but not gone yet.
    replaced: Vec<ConnId>,
    /// Answers of the round under way, and how many are still to come.
    silence: Vec<(ConnId, u64)>,
    awaited: usize,
}

/// The users at home on a shard. The hash table holds numbers, so that its free places cost little.
#[derive(Default)]
pub struct UserHomes {
    table: HashTable<u32>,
    users: Slab<HomeUser>,
    many: Slab<Many>,
}

impl UserHomes {
    /// Counts a connection in. Returns the form of the user's id, and how many connections it has.
    fn enter(&mut self, user: &UserId, conn: ConnId) -> (UserId, usize) {
        if let Some(number) = self.find(user) {
            let many = self.make_many(number);
            many.conns.push(conn);
            let count = many.conns.len() - many.replaced.len();
            return (self.users[number].user.clone(), count);
        }
        let number = self.users.insert(HomeUser { user: user.clone(), conn });
        let users = &self.users;
        self.table.insert_unique(user.hash_code(), number as u32, |&n| users[n as usize].user.hash_code());
        (user.clone(), 1)
    }

    /// Counts a connection out; with the last one the user is forgotten.
    pub fn leave(&mut self, user: &UserId, conn: ConnId) {
        let Some(number) = self.find(user) else { return };
        let list = self.users[number].many();
        let is_last = match list {
            None => self.users[number].conn == conn,
            Some(at) => {
                let many = &mut self.many[at];
                many.conns.retain(|&other| other != conn);
                many.replaced.retain(|&other| other != conn);
                many.conns.is_empty() && many.awaited == 0
            }
        };
        if is_last {
            list.map(|at| self.many.remove(at));
            self.users.remove(number);
            if let Ok(entry) = self.table.find_entry(user.hash_code(), |&n| n as usize == number) {
                entry.remove();
            }
        }
    }

    fn find(&self, user: &UserId) -> Option<usize> {
        let found = self.table.find(user.hash_code(), |&n| self.users[n as usize].user == *user);
        found.map(|&number| number as usize)
    }

    /// The shards that have connections of the user, and how many connections there are.
    fn shards_of(&self, user: &UserId) -> (Vec<ShardId>, usize) {
        let conns = self.find(user).map_or(&[][..], |number| self.conns(&self.users[number]));
        let mut shards: Vec<ShardId> = conns.iter().map(|conn| conn.shard()).collect();
        shards.sort_unstable();
        shards.dedup();
        (shards, conns.len())
    }

    fn conns<'a>(&'a self, home: &'a HomeUser) -> &'a [ConnId] {
        match home.many() {
            None => std::slice::from_ref(&home.conn),
            Some(at) => &self.many[at].conns,
        }
    }

    fn many(&mut self, user: &UserId) -> Option<&mut Many> {
        let number = self.find(user)?;
        Some(self.make_many(number))
    }

    fn make_many(&mut self, number: usize) -> &mut Many {
        let home = &mut self.users[number];
        let at = home.many().unwrap_or_else(|| {
            let at = self.many.insert(Many { conns: vec![home.conn], ..Many::default() });
            home.conn = ConnId::new(ShardId::NOWHERE, 0, at as u32);
            at
        });
        &mut self.many[at]
    }

    /// Frees what many more users needed.
    pub fn give_back(&mut self) {
        let users = &self.users;
        give_back_table(&mut self.table, |&n| users[n as usize].user.hash_code());
        give_back_slab(&mut self.users);
        give_back_slab(&mut self.many);
    }

    /// How many users.
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }
}

impl Shard {
    /// Answers what the home of a user is asked.
    pub(super) fn handle_user_ask(&mut self, from: ShardId, origin: Origin, user: &UserId, ask: UserAsk) {
        match ask {
            UserAsk::Admit => {
                let (form, count) = self.user_homes.enter(user, origin.conn);
                let debts = self.known_debts(user);
                self.mail.reply(from, Reply { origin, answer: Answer::Admitted(form, debts) });
                if count > self.config.limits.connections_per_user_max {
                    self.ask_silence(user);
                }
            }
            UserAsk::Event(frame) => {
                let (shards, connections) = self.user_homes.shards_of(user);
                if !shards.iter().all(|&shard| self.mail.is_window_open(shard)) {
                    let answer = Answer::Refused(ErrorCode::Overloaded);
                    return self.mail.reply(from, Reply { origin, answer });
                }
                for shard in shards {
                    self.mail.post(shard, Envelope::ToUser { user: user.clone(), frame: frame.clone() });
                }
                let answer = Answer::Delivered { users: u32::from(connections > 0), connections: connections as u32 };
                self.mail.reply(from, Reply { origin, answer });
            }
        }
    }

    /// Asks the shards with connections of the user how long each has been silent, unless a round is under way.
    fn ask_silence(&mut self, user: &UserId) {
        let (shards, _) = self.user_homes.shards_of(user);
        if self.user_homes.many(user).is_none_or(|many| many.awaited > 0) {
            return;
        }
        let mut awaited = 0;
        for shard in shards {
            let conn = ConnId::new(self.id, 0, 0);
            let request = Request {
                origin: Origin { conn, to: ReplyTo::Eviction(user.clone()) },
                ask: Ask::Shard(ShardAsk::Silence(user.clone())),
            };
            // A shard that takes no more requests now is asked when the next connection comes.
            awaited += usize::from(self.mail.request(shard, request).is_ok());
        }
        if let Some(many) = self.user_homes.many(user) {
            many.awaited = awaited;
        }
    }

    /// One shard has told how silent its connections of the user are; after the last, those silent longest are closed.
    pub(super) fn finish_silence(&mut self, user: &UserId, answer: Answer) {
        let max = self.config.limits.connections_per_user_max;
        let Some(many) = self.user_homes.many(user) else { return };
        many.awaited -= 1;
        if let Answer::Silence(heard) = answer {
            many.silence.extend(heard);
        }
        if many.awaited > 0 {
            return;
        }
        let mut silence = std::mem::take(&mut many.silence);
        silence.retain(|(conn, _)| many.conns.contains(conn) && !many.replaced.contains(conn));
        // Of two that are equally silent the one that is in the list longer goes.
        silence.sort_by_key(|&(conn, silent_ms)| {
            (std::cmp::Reverse(silent_ms), many.conns.iter().position(|&other| other == conn))
        });
        let excess = (many.conns.len() - many.replaced.len()).saturating_sub(max);
        let is_still_over = excess > silence.len();
        let victims: Vec<ConnId> = silence.into_iter().take(excess).map(|(conn, _)| conn).collect();
        many.replaced.extend(&victims);
        let is_gone = many.conns.is_empty();
        for conn in victims {
            self.mail.post(conn.shard(), Envelope::Replace { conn });
        }
        if is_gone {
            self.user_homes.leave(user, ConnId::new(self.id, 0, 0));
        } else if is_still_over {
            // Others were admitted during the round; the next one asks behind what they were told, and so finds them.
            self.ask_silence(user);
        }
    }
}
