//! From where each connection comes.
//!
//! An IPv4 address stands in the four bytes that each slot has here. Others stand in a table, whose numbers take the
//! place of IPv4 addresses that no host has (class E, 240.0.0.0/4, of which those that do occur stand in the table too).

use core::net::{IpAddr, Ipv4Addr};

use slab::Slab;

use super::slack::give_back_slab;

/// From here on a code is a number in the table.
const TABLE: u32 = 0xf000_0000;
/// The code of a slot that is free: the broadcast address, the last number of the table.
const NOWHERE: u32 = u32::MAX;

/// The address of each slot's peer.
#[derive(Default)]
pub struct Addresses {
    codes: Vec<u32>,
    wide: Slab<IpAddr>,
}

impl Addresses {
    /// Notes from where the connection comes, in place of what was noted.
    pub fn set(&mut self, slot: u32, address: IpAddr) {
        self.clear(slot);
        let index = slot as usize;
        if self.codes.len() <= index {
            self.codes.resize(index + 1, NOWHERE);
        }
        self.codes[index] = match address.to_canonical() {
            IpAddr::V4(narrow) if narrow.to_bits() < TABLE => narrow.to_bits(),
            wide => TABLE + self.wide.insert(wide) as u32,
        };
    }

    /// Forgets from where it comes.
    pub fn clear(&mut self, slot: u32) {
        let Some(code) = self.codes.get_mut(slot as usize) else { return };
        let code = std::mem::replace(code, NOWHERE);
        if (TABLE..NOWHERE).contains(&code) {
            self.wide.remove((code - TABLE) as usize);
        }
    }

    /// From where the connection comes; 255.255.255.255 if there is none.
    pub fn of(&self, slot: u32) -> IpAddr {
        match self.codes.get(slot as usize) {
            Some(&code) if code < TABLE => IpAddr::V4(Ipv4Addr::from_bits(code)),
            Some(&code) if code < NOWHERE => self.wide[(code - TABLE) as usize],
            _ => IpAddr::V4(Ipv4Addr::BROADCAST),
        }
    }

    /// Frees what many more addresses needed.
    pub fn give_back(&mut self) {
        give_back_slab(&mut self.wide);
    }

    /// Addresses that take a place in the table.
    pub fn wide(&self) -> usize {
        self.wide.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_address_comes_back_and_only_wide_ones_take_a_place() {
        let all = ["10.1.2.3", "0.0.0.0", "239.255.255.255", "240.0.0.1", "255.255.255.254", "2001:db8::7", "::1"];
        let mut addresses = Addresses::default();
        for (slot, text) in (0..).zip(all) {
            addresses.set(slot, address(text));
        }
        for (slot, text) in (0..).zip(all) {
            assert_eq!(addresses.of(slot), address(text));
        }
        assert_eq!(addresses.wide(), 4);
        addresses.set(0, address("::ffff:192.0.2.1"));
        assert_eq!((addresses.of(0), addresses.wide()), (address("192.0.2.1"), 4));
        (0..9).for_each(|slot| addresses.clear(slot));
        let nowhere = address("255.255.255.255");
        assert_eq!((addresses.of(5), addresses.of(99), addresses.wide()), (nowhere, nowhere, 0));
    }
}
