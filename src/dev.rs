//! What `--dev` prints once the server listens: all that a newcomer needs next.
//!
//! Owns the text. Knows the configuration and the address, nothing about sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::auth::Role;
use crate::config::Config;
use crate::wire::value::Id;

/// How long the printed tokens are good for.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// The lines to print on standard output when the server listens on `address`; `now_ms` is
/// milliseconds since the epoch.
///
/// Secrets appear only where they were made for this run. A configured API key is not repeated:
/// the `curl` line then carries a service token.
pub fn dev_banner(config: &Config, address: SocketAddr, now_ms: u64) -> String {
    let host = SocketAddr::new(reachable(address.ip()), address.port());
    let mint = |user: &str, role| {
        let user = Id::from_text(user);
        let token = config.credentials.keys.mint(user.as_ref(), role, TOKEN_TTL, now_ms);
        token.unwrap_or_else(|| "TOKEN".to_owned())
    };
    let generated = &config.generated;
    let configured = "(as configured)";
    let secret = generated.jwt_secret.as_deref().unwrap_or(configured);
    let (api_key, credential) = match (&generated.api_key, &config.credentials.api_keys) {
        (Some(key), _) => (key.as_str(), format!("X-API-Key: {key}")),
        (None, keys) => {
            let shown = if keys.is_empty() { "(none)" } else { configured };
            let token = mint("dev-service", Role::Service);
            (shown, format!("Authorization: Bearer {token}"))
        }
    };
    let mut banner = format!(
        "sizland-chat for development on http://{host}\n\n\
         JWT_SECRET    {secret}\nCHAT_API_KEY  {api_key}\n"
    );
    for user in ["alice", "bob"] {
        let token = mint(user, Role::User);
        banner.push_str(&format!(
            "\n{user}, in a terminal of its own:\n\n  \
             npx wscat -c \"ws://{host}/ws?token={token}\"\n"
        ));
    }
    banner.push_str(&format!(
        "\nType in each:\n\n  {{\"type\":\"join_room\",\"roomId\":\"room-1\"}}\n\n\
         Then post a message, which both see:\n\n  \
         curl -X POST \"http://{host}/api/chat/rooms/room-1/messages\" \
         -H \"{credential}\" -H \"Content-Type: application/json\" \
         -d '{{\"content\":\"Hello\",\"sender_user_id\":\"alice\"}}'\n"
    ));
    banner
}

fn reachable(listening: IpAddr) -> IpAddr {
    match listening {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Inputs;

    use super::*;

    fn config(environment: &[(&str, &str)]) -> Config {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let inputs = Inputs {
            dev: true,
            flags: Vec::new(),
            environment: environment.iter().map(owned).collect(),
            dot_env: None,
            read_file: |_| Ok(String::new()),
            open_files_max: 1024,
            cores: 1,
        };
        Config::load(&inputs).unwrap()
    }

    fn banner(config: &Config, address: &str) -> String {
        dev_banner(config, address.parse().unwrap(), 1_700_000_000_000)
    }

    #[test]
    fn it_prints_secrets_of_this_run_and_lines_that_work() {
        let config = config(&[]);
        let text = banner(&config, "127.0.0.1:3001");
        assert!(text.contains(config.generated.jwt_secret.as_deref().unwrap()));
        let key = config.generated.api_key.as_deref().unwrap();
        assert!(text.contains(&format!("-H \"X-API-Key: {key}\"")), "{text}");
        let tokens: Vec<&str> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("npx wscat -c \"ws://127.0.0.1:3001/ws?token="))
            .map(|rest| rest.trim_end_matches('"'))
            .collect();
        let users: Vec<Id> = tokens
            .iter()
            .map(|token| config.credentials.keys.verify(token, 1_700_000_000_000).unwrap())
            .filter_map(|identity| identity.user)
            .collect();
        assert_eq!(users, ["alice", "bob"].map(|user| Id::from_text(user).unwrap()));
        assert!(text.contains(r#"{"type":"join_room","roomId":"room-1"}"#));
        assert!(text.contains("http://127.0.0.1:3001/api/chat/rooms/room-1/messages"));
    }

    #[test]
    fn configured_secrets_are_not_repeated() {
        let given = [("JWT_SECRET", "my-secret"), ("CHAT_API_KEY", "my-key-0123456789")];
        let config = config(&given);
        let text = banner(&config, "0.0.0.0:8080");
        assert!(!text.contains("my-secret") && !text.contains("my-key"), "{text}");
        assert!(text.contains("ws://127.0.0.1:8080/ws"));
        let (_, rest) = text.split_once("Bearer ").unwrap();
        let token = rest.split('"').next().unwrap();
        let identity = config.credentials.keys.verify(token, 1_700_000_000_000).unwrap();
        assert_eq!(identity.role, Role::Service);
    }
}
