//! Which peers are proxies whose word about their clients counts.
//!
//! Owns the reading and the comparison of addresses and networks. Knows nothing about what a proxy says.

use std::net::IpAddr;

use ipnet::IpNet;

/// The proxies that are trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    networks: Vec<IpNet>,
}

impl Proxies {
    /// Reads addresses and networks (`10.0.0.0/8`) separated by commas; empty text is none.
    pub fn parse(text: &str) -> Option<Proxies> {
        if text.trim().is_empty() {
            return Some(Proxies::default());
        }
        let network = |one: &str| match one.parse::<IpAddr>() {
            Ok(address) => Some(IpNet::from(address.to_canonical())),
            // Bits behind the prefix are most often a slip, and what was meant is not known.
            Err(_) => one.parse().ok().filter(|network: &IpNet| network.addr() == network.network()),
        };
        let networks: Option<Vec<IpNet>> = text.split(',').map(|one| network(one.trim())).collect();
        networks.map(|networks| Proxies { networks })
    }

    /// Whether the peer with this address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks_are_compared_by_their_prefix() {
        let proxies = Proxies::parse("127.0.0.1, 10.0.0.0/8,2001:db8::/32 , ::ffff:192.0.2.1").unwrap();
        for inside in ["127.0.0.1", "10.255.0.1", "::ffff:10.0.0.1", "2001:db8:1::1", "192.0.2.1"] {
            assert!(proxies.contains(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["127.0.0.2", "11.0.0.1", "2001:db9::", "::1", "::ffff:11.0.0.1"] {
            assert!(!proxies.contains(outside.parse().unwrap()), "{outside}");
        }
        assert!(Proxies::parse("").unwrap().is_empty());
    }

    #[test]
    fn what_is_neither_is_refused() {
        for bad in
            ["localhost", "10.0.0.0/33", "10.0.0.1/8", "10.0.0.0/", "10.0.0", "10.0.0.1,", "::/129", "1.2.3.4:80"]
        {
            assert_eq!(Proxies::parse(bad), None, "{bad}");
        }
    }
}
