//! What the clients have learned against what was committed: as they learn it, and once everything has settled.

use sizland_chat::access::Level;
use sizland_chat::config::Limits;
use sizland_chat::wire::message::tombstone;

use super::client::{Client, Speaks};
use super::members::GUARDED;
use super::rest::{Expect, Rest};
use super::simulation::Simulation;
use super::socket::{Seen, Socket};
use super::truth::Truth;

impl Simulation {
    /// Takes in what a client has learned: one place has one event, and with a store it was committed before.
    pub(super) fn collect(&mut self, at: usize) {
        let world = &mut *self.world.borrow_mut();
        let truth = world.store.as_mut().map(|store| &mut store.truth);
        match (&mut self.clients[at].speaks, truth) {
            (Speaks::Socket(socket), Some(truth)) => learn_from_socket(truth, socket),
            (Speaks::Rest(rest), Some(truth)) => learn_from_rest(truth, rest),
            (Speaks::Socket(socket), None) => {
                socket.acknowledged.clear();
                for Seen { room, epoch, seq, event, .. } in socket.seen.drain(..) {
                    let known = self.told.entry((room, epoch, seq)).or_insert_with(|| event.clone());
                    if *known == event {
                        continue;
                    }
                    let erased = |event: &serde_json::Value| {
                        tombstone(&event.to_string()).map(|text| serde_json::from_slice(&text).unwrap())
                    };
                    if erased(&event).as_ref() == Some(known) {
                        *known = event;
                    } else {
                        assert_eq!(erased(known), Some(event), "one place, two events: {known}");
                    }
                }
            }
            (Speaks::Rest(_), None) => {}
        }
    }

    /// Looks at what the store has, and at what the homes make of it, when nothing is under way.
    pub(super) fn audit(&mut self) {
        if !self.plan.has_store {
            return;
        }
        self.world.borrow().store.as_ref().unwrap().check();
        // Whose answer was lost is told with what comes next.
        let Some(at) = self.connect_prober() else { return };
        let rooms: Vec<String> = (0..self.plan.rooms).map(|room| format!("room-{room}")).collect();
        let mut random = self.random.clone();
        for room in &rooms {
            self.prober(at, |rest, out| rest.post(room, &mut random, out));
            self.settle(3_000);
        }
        let Speaks::Rest(rest) = &self.clients[at].speaks else { unreachable!() };
        // A room that nobody is in may be one too many.
        let has_room = self.plan.limits.rooms_max >= Limits::default().rooms_max;
        assert!(!has_room || rest.answers.iter().all(|(_, status, _)| *status == 201), "{:?}", rest.answers);
        let told = rest.changed_rooms();
        self.check_positions(&told);
        self.check_feed(at);
        self.check_recovery(&told);
    }

    /// Whoever is in the guarded room may be.
    pub(super) fn check_members(&mut self) {
        let world = self.world.borrow();
        let Some(store) = world.store.as_ref().filter(|_| self.plan.guarded) else { return };
        for socket in self.clients.iter_mut().filter(|client| !client.ended).filter_map(Client::socket) {
            let is_in = socket.is_open() && socket.views.get(GUARDED).is_some_and(|view| view.joined);
            let level = store.truth.members.level(&socket.user);
            assert!(!is_in || level > Level::Nothing, "{} is in {GUARDED} and is no member", socket.user);
        }
    }

    /// Whoever is in a room has everything that was committed.
    fn check_positions(&mut self, rooms: &[String]) {
        let world = self.world.borrow();
        let truth = &world.store.as_ref().unwrap().truth;
        for socket in self.clients.iter_mut().filter(|client| !client.ended).filter_map(Client::socket) {
            for room in rooms.iter().filter(|_| socket.is_open()) {
                let Some(view) = socket.views.get(room).filter(|view| view.joined) else { continue };
                assert_eq!(view.last, truth.last_seq(room), "{} in {room} has everything", socket.user);
            }
        }
    }

    /// Reads the whole feed through the server.
    fn check_feed(&mut self, at: usize) {
        let mut read = 0;
        loop {
            self.prober(at, |rest, out| rest.feed_on(out));
            self.settle(100);
            let Speaks::Rest(rest) = &mut self.clients[at].speaks else { unreachable!() };
            let asked = matches!(rest.answers.last(), Some((Expect::Feed { .. }, ..)));
            let Some((expect, status, body)) = rest.answers.pop().filter(|_| asked) else {
                return assert!(self.plan.drops() && self.clients[at].ended, "the feed is not told");
            };
            assert_eq!(status, 200, "{expect:?}: {body}");
            let events = body["events"].as_array().unwrap();
            let world = self.world.borrow();
            let truth = &world.store.as_ref().unwrap().truth;
            truth.check_feed(read, events, true);
            read += events.len() as u64;
            if body["more"] == false {
                return assert_eq!(read, truth.last_position(), "the feed has everything");
            }
        }
    }

    /// Who comes back now gets what the limits allow.
    fn check_recovery(&mut self, rooms: &[String]) {
        let (events_max, bytes_max) = (self.plan.limits.recovery_events, self.plan.limits.recovery_bytes_max);
        let epoch = self.world.borrow().store.as_ref().unwrap().facts().epoch;
        for at in 0..self.clients.len() {
            for room in rooms {
                let missed = (self.random.below(6)).min(events_max) as u64;
                let (since, is_small) = {
                    let world = self.world.borrow();
                    let truth = &world.store.as_ref().unwrap().truth;
                    let since = truth.last_seq(room).saturating_sub(missed);
                    (since, truth.bytes_behind(room, since) <= bytes_max as u64)
                };
                let Client { speaks: Speaks::Socket(socket), out, ended: false, .. } = &mut self.clients[at] else {
                    continue;
                };
                if !socket.is_open() || !socket.is_in(room) {
                    continue;
                }
                socket.recovered = None;
                socket.join_from(room, (since, epoch.to_string()), out);
                self.settle(3_000);
                let Some(socket) = self.clients[at].socket().filter(|socket| socket.is_open()) else { continue };
                if is_small && socket.recovered.is_some() {
                    assert_eq!(socket.recovered, Some(true), "{room} behind {since}: {socket:?}");
                }
            }
        }
        self.check_positions(rooms);
    }
}

fn learn_from_socket(truth: &mut Truth, socket: &mut Socket) {
    for Seen { room, seq, event, told_to, .. } in socket.seen.drain(..) {
        if room == GUARDED {
            truth.members.deliver(&socket.user, seq);
        }
        truth.deliver(&room, seq, &event, told_to);
    }
    for (change, seq) in socket.acknowledged.drain(..) {
        truth.acknowledge(change, seq);
    }
}

fn learn_from_rest(truth: &mut Truth, rest: &mut Rest) {
    for (change, seq) in rest.acknowledged.drain(..) {
        truth.acknowledge(change, seq);
    }
    rest.members.drain(..).for_each(|told| truth.acknowledge_members(told));
    for (expect, body) in rest.pages.drain(..) {
        match expect {
            Expect::Page { room } => truth.check_page(&room, &body),
            Expect::Feed { position } => truth.check_feed(position, body["events"].as_array().unwrap(), false),
            _ => {}
        }
    }
}
