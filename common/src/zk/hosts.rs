//! Which entries of the host list the client can use, and a log line for those that it cannot. Never fails: one bad
//! entry must not keep the others from being tried.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

/// How often names that did not resolve are tried again, for the log only.
const NAME_RETRY: Duration = Duration::from_secs(60);

/// The connect string without entries that the client would refuse as a whole. All of them when none is left, so that
/// the client says what is wrong.
pub(super) fn usable(hosts: &str) -> String {
    let usable: Vec<&str> = hosts
        .split(',')
        .filter(|host| is_well_formed(host))
        .collect();
    if usable.is_empty() {
        hosts.to_owned()
    } else {
        usable.join(",")
    }
}

/// What the client parses: `name:port`, `v4:port` or `[v6]:port`. (That there is a port is `Ensemble`'s promise.)
fn is_well_formed(host: &str) -> bool {
    match host.strip_prefix('[') {
        None => !host.starts_with(':') && !host.contains([']', '/']),
        Some(rest) => rest
            .split_once("]:")
            .is_some_and(|(v6, _)| v6.parse::<std::net::Ipv6Addr>().is_ok()),
    }
}

/// Names the hosts that are skipped, once each time that changes. The client itself passes over them in silence.
pub(super) async fn report_bad(hosts: &str) -> Infallible {
    let (good, malformed): (Vec<&str>, Vec<&str>) =
        hosts.split(',').partition(|host| is_well_formed(host));
    for host in malformed {
        tracing::warn!(
            host,
            "zookeeper host skipped: not `name:port` or `[v6]:port`"
        );
    }
    let mut bad = BTreeSet::new();
    loop {
        for host in &good {
            match tokio::net::lookup_host(host).await {
                Ok(_) if bad.remove(host) => tracing::info!(host, "zookeeper host resolves again"),
                Err(error) if bad.insert(host) => {
                    tracing::warn!(host, %error, "zookeeper host does not resolve: skipped")
                }
                _ => {}
            }
        }
        if bad.is_empty() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(NAME_RETRY).await;
    }
}
