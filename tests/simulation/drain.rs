//! The end of a seed: the server stops while everybody talks, and leaves nothing behind.

use sizland_chat::chat::drain::Stage;
use sizland_chat::reactor::io::Post;

use super::client::{Client, Speaks};
use super::simulation::Simulation;

impl Simulation {
    /// Stops the server while everybody talks.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        // What the shards tell each other is on its way for a while, so that a stage is not done when it seems so.
        self.world.borrow_mut().faults.slow_post = 2;
        let rooms: Vec<String> = (0..self.plan.rooms).map(|room| format!("room-{room}")).collect();
        for client in self.clients.iter_mut().filter(|client| !client.ended) {
            let Client { speaks, out, .. } = client;
            match speaks {
                Speaks::Socket(socket) => {
                    socket.allowed.draining = true;
                    if socket.is_open() {
                        rooms.iter().for_each(|room| socket.react(room, out));
                    }
                    socket.must_answer_below = socket.next_ref();
                }
                Speaks::Rest(rest) => rooms.iter().for_each(|room| rest.post(room, &mut self.random, out)),
            }
            client.transfer(&self.world, usize::MAX);
        }
        let present: Vec<bool> = self.clients.iter().map(|client| !client.ended).collect();
        self.lead(Stage::Notice);
        self.lead(Stage::Quiesce);
        self.lead(Stage::Close);
        self.run_all();
        for (at, client) in self.clients.iter_mut().enumerate() {
            assert!(
                client.ended,
                "client {at} is left: fin {} out {} {:?}",
                client.fin_sent,
                client.out.len(),
                client.unanswered()
            );
            let (fin, has_stalled, was_reset) = (client.fin, client.has_stalled, client.was_reset);
            if let Some(socket) = client.socket().filter(|_| present[at] && !has_stalled && !fin && !was_reset) {
                assert!(socket.closed.is_some(), "client {at} was not told: {socket:?}");
            }
        }
        self.lead(Stage::Settle);
        for shard in 0..self.plan.shards {
            self.world.borrow_mut().ports[shard].flight.push_back((Post::End, 0));
        }
        self.run_all();
        for (shard, reactor) in self.reactors.iter().enumerate() {
            assert!(reactor.is_ended());
            reactor.shard().check_empty();
            let world = self.world.borrow();
            assert!(world.ports[shard].mailbox.is_empty() && world.ports[shard].flight.is_empty());
        }
        assert_eq!(self.gauges.websockets(), 0);
    }

    fn lead(&mut self, stage: Stage) {
        for port in &mut self.world.borrow_mut().ports {
            port.flight.push_back((Post::Stage(stage), 0));
        }
        let limits = &self.plan.limits;
        let deadline_ms = self.world.borrow().now_ms + limits.drain_window_ms + limits.close_ms + 5_000;
        loop {
            // A few turns of random shards, so that they are not in step.
            for _ in 0..self.random.range(4, 40) {
                let shard = self.random.below(self.plan.shards);
                self.world.borrow_mut().land(shard, 1);
                self.turn(shard);
                if self.is_reported(stage) {
                    return;
                }
            }
            if self.is_reported(stage) {
                return;
            }
            self.settle(1);
            if self.is_reported(stage) {
                return;
            }
            self.settle(100);
            assert!(self.world.borrow().now_ms < deadline_ms, "{stage:?} is never done");
        }
    }

    fn is_reported(&self, stage: Stage) -> bool {
        self.world.borrow().ports.iter().all(|port| port.reports.contains(&stage))
    }
}
