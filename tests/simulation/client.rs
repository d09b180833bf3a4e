//! A simulated client: its end of one connection, as bytes. What it says stands in `socket` and `rest`.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::random::Random;
use super::rest::Rest;
use super::socket::Socket;
use super::world::World;

/// One client with one connection; a new one takes its place when it is over.
pub struct Client {
    pub link: usize,
    pub speaks: Speaks,
    /// Written and not on its way yet.
    pub out: VecDeque<u8>,
    /// Ends its side once everything is out.
    pub fin: bool,
    pub fin_sent: bool,
    pub was_reset: bool,
    /// Reads nothing for so many steps.
    pub not_reading: usize,
    pub has_stalled: bool,
    /// The connection is over.
    pub ended: bool,
    /// A fingerprint of everything received.
    pub hash: u64,
}

pub enum Speaks {
    Socket(Box<Socket>),
    Rest(Box<Rest>),
}

impl Client {
    pub fn new(link: usize, speaks: Speaks) -> Self {
        Self {
            link,
            speaks,
            out: VecDeque::new(),
            fin: false,
            fin_sent: false,
            was_reset: false,
            not_reading: 0,
            has_stalled: false,
            ended: false,
            hash: 0xcbf2_9ce4_8422_2325,
        }
    }

    /// Puts up to `max` bytes on their way.
    pub fn transfer(&mut self, world: &Rc<RefCell<World>>, max: usize) -> bool {
        if self.ended || self.was_reset || self.fin_sent {
            return false;
        }
        let count = max.min(self.out.len());
        let bytes: Vec<u8> = self.out.drain(..count).collect();
        let fin = self.fin && self.out.is_empty();
        world.borrow_mut().client_write(self.link, &bytes, fin);
        self.fin_sent = fin;
        count > 0 || fin
    }

    /// Reads up to `max` bytes and takes them in.
    pub fn receive(&mut self, world: &Rc<RefCell<World>>, max: usize) -> bool {
        if self.ended || self.was_reset {
            return false;
        }
        let bytes = world.borrow_mut().client_read(self.link, max);
        for &byte in &bytes {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        match &mut self.speaks {
            Speaks::Socket(socket) => socket.take(&bytes, &mut self.out),
            Speaks::Rest(rest) => rest.take(&bytes),
        }
        let ended = {
            let world = world.borrow();
            let link = &world.links[self.link];
            link.to_client.is_empty() && (link.server_fin || link.reset)
        };
        if ended {
            self.has_stalled |= world.borrow().links[self.link].reset;
            self.end();
            if !self.fin_sent {
                self.fin_sent = true;
                world.borrow_mut().client_write(self.link, &[], true);
            }
        }
        ended || !bytes.is_empty()
    }

    pub fn reset(&mut self, world: &Rc<RefCell<World>>) {
        if !self.ended {
            world.borrow_mut().client_reset(self.link);
            (self.was_reset, self.ended) = (true, true);
        }
    }

    /// The server is gone; what it had written may still be read.
    pub fn end_by_crash(&mut self, world: &Rc<RefCell<World>>) {
        let link = &world.borrow().links[self.link];
        if !self.ended && link.reset {
            (self.was_reset, self.ended) = (true, true);
        }
    }

    fn end(&mut self) {
        self.ended = true;
        let excused = self.fin || self.has_stalled;
        match &mut self.speaks {
            Speaks::Socket(socket) => socket.end(excused),
            Speaks::Rest(rest) => rest.end(excused),
        }
    }

    /// Says something at random.
    pub fn act(&mut self, random: &mut Random, split: bool) {
        if self.ended || self.fin {
            return;
        }
        match &mut self.speaks {
            Speaks::Socket(socket) => socket.act(random, &mut self.out, split),
            Speaks::Rest(rest) => rest.act(random, &mut self.out),
        }
    }

    /// Changes something, or comes back to a room.
    pub fn converse(&mut self, random: &mut Random) {
        if self.ended || self.fin {
            return;
        }
        match &mut self.speaks {
            Speaks::Socket(socket) => socket.converse(random, &mut self.out),
            Speaks::Rest(rest) => rest.converse(random, &mut self.out),
        }
    }

    /// What is still to be answered.
    pub fn unanswered(&self) -> usize {
        match &self.speaks {
            _ if self.ended || self.was_reset => 0,
            Speaks::Socket(socket) => socket.unanswered(),
            Speaks::Rest(rest) => rest.unanswered(),
        }
    }

    pub fn socket(&mut self) -> Option<&mut Socket> {
        match &mut self.speaks {
            Speaks::Socket(socket) => Some(socket),
            Speaks::Rest(_) => None,
        }
    }
}
