//! Connections that come through proxies: from where their clients are.
//!
//! Only the word of a trusted proxy counts. What it says in a PROXY header is so for the whole connection; what it says in
//! `X-Forwarded-For` is so for one request, since a proxy may carry the requests of many on one connection, and stays so
//! for the WebSocket that a request becomes.

use core::net::IpAddr;

use super::denial::DenialReason;
use super::http::Http;
use super::shard::Shard;
use crate::wire::http::Head;
use crate::wire::proxy::forwarded_client;

impl Shard {
    /// Whether what a peer at that address sends begins with a PROXY header.
    pub fn expects_proxy_header(&self, address: IpAddr) -> bool {
        self.config.proxy_protocol && self.config.trusted_proxies.contains(address)
    }

    /// A connection began with a PROXY header; without a client the proxy speaks for itself.
    pub fn handle_proxy_header(&mut self, slot: u32, client: Option<IpAddr>) {
        if let Some(client) = client {
            self.addresses.set(slot, client);
        }
    }

    /// A connection does not begin with the PROXY header that it should begin with.
    pub fn refuse_proxy_header(&mut self, slot: u32, fault: &str) {
        self.deny(slot, DenialReason::ProxyHeader, None, fault);
        self.kill(slot);
    }

    /// Notes from where a request comes.
    pub(super) fn note_client(&mut self, slot: u32, http: &mut Http, head: &Head<'_>) {
        if self.config.trusted_proxies.is_empty() {
            return;
        }
        let peer = *http.peer.get_or_insert_with(|| self.addresses.of(slot));
        let is_trusted = |address| self.config.trusted_proxies.contains(address);
        if is_trusted(peer) {
            let elements: Vec<&[u8]> = head.list("x-forwarded-for").collect();
            let client = forwarded_client(elements.into_iter(), is_trusted).unwrap_or(peer);
            self.addresses.set(slot, client);
        }
    }
}
