//! Stopping in order.
//!
//! The phases are led by the server, which waits for every shard to reach one before it names the next: *Notice*
//! (`/readyz` says 503, everything else goes on), *Quiesce* (nothing new begins, what is under way is answered, presence and
//! typing fall silent), *Close* (every connection gets `draining` and Close 1001, spread over the window), *Settle* (nothing
//! is in flight between the shards any more).

use super::closing::CloseReason;
use super::connection::Phase;
use super::shard::Shard;
use crate::wire::event;

/// A few connections are no storm: their closes are not spread further apart than this.
const CLOSE_INTERVAL_MS_MAX: u64 = 10;

/// How far stopping has come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// Not stopping.
    Running,
    /// About to: load balancers look elsewhere.
    Notice,
    /// Listeners are closed, new requests are refused.
    Quiesce,
    /// Connections are being closed.
    Close,
    /// No connection is left; the shards finish what they owe each other.
    Settle,
}

impl Shard {
    /// The server leads on to the next stage.
    pub fn handle_stage(&mut self, stage: Stage) {
        self.stage = stage;
        if stage == Stage::Quiesce {
            self.end_all_feed_waits();
        }
        if stage == Stage::Close {
            self.spread_closes();
        }
    }

    /// Whether all that the present stage asks for is done here.
    pub fn is_stage_done(&self) -> bool {
        match self.stage {
            Stage::Running | Stage::Notice => true,
            Stage::Quiesce => self.is_quiet(),
            Stage::Close => self.connections.is_empty(),
            Stage::Settle => {
                self.mail.is_settled() && !self.rooms.has_dirty() && self.desk.is_idle() && self.errands.is_idle()
            }
        }
    }

    /// Ends what is left when the window is over.
    pub fn handle_window_over(&mut self) {
        let left: Vec<u32> = self.connections.iter().filter(|(_, c)| c.phase != Phase::Free).map(|(s, _)| s).collect();
        left.into_iter().for_each(|slot| self.kill(slot));
    }

    /// Whether new work is refused.
    pub(super) fn is_quiescing(&self) -> bool {
        self.stage >= Stage::Quiesce
    }

    /// Whether presence and typing are silent.
    pub(super) fn is_draining(&self) -> bool {
        self.stage >= Stage::Close
    }

    /// Nothing that was asked is unanswered.
    fn is_quiet(&self) -> bool {
        let is_owed_nothing = self.desk.is_idle() && self.errands.is_idle();
        self.mail.is_settled() && !self.rooms.has_dirty() && self.joins.is_empty() && is_owed_nothing
    }

    /// Gives every connection its moment in the window.
    fn spread_closes(&mut self) {
        let window_ms = self.config.limits.drain_window_ms;
        let all: Vec<(u32, Phase)> = self.connections.iter().map(|(slot, conn)| (slot, conn.phase)).collect();
        let open = all.iter().filter(|(_, phase)| *phase == Phase::Open).count().max(1) as u64;
        let mut place = 0;
        for (slot, phase) in all {
            match phase {
                Phase::Open => {
                    let at_ms = (window_ms * place / open).min(place * CLOSE_INTERVAL_MS_MAX);
                    place += 1;
                    if at_ms == 0 {
                        self.close_draining(slot);
                    } else {
                        self.wheel.set(slot, self.now.tick_ms + at_ms);
                    }
                }
                Phase::Http => self.http_drain(slot),
                Phase::Auth => self.close(slot, &CloseReason::GoingAway),
                Phase::Free | Phase::Admitting | Phase::Closing | Phase::Lingering | Phase::Dead => {}
            }
        }
    }

    /// While draining, the timer of an open connection means its turn has come.
    pub(super) fn drain_due(&mut self, slot: u32) -> bool {
        let due = self.is_draining();
        if due {
            self.close_draining(slot);
        }
        due
    }

    pub(super) fn close_draining(&mut self, slot: u32) {
        let now = self.now.wall_ms;
        // Everybody coming back at once is what the window spares the next server.
        let window_ms = self.config.limits.drain_window_ms.max(1);
        let reconnect_in_ms = (self.random() % u128::from(window_ms)) as u64;
        self.send_json(slot, |out| event::draining(out, reconnect_in_ms, now));
        self.close(slot, &CloseReason::GoingAway);
    }
}
