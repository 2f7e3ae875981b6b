//! Log lines for the hosts whose names do not resolve. That each entry of the list is well formed is `Ensemble`'s promise.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

/// How often names that did not resolve are tried again, for the log only.
const NAME_RETRY: Duration = Duration::from_secs(60);

/// Names the hosts that are passed over, once each time that changes. The client itself passes over them in silence.
pub(super) async fn report_bad(hosts: &str) -> Infallible {
    let hosts: Vec<&str> = hosts.split(',').collect();
    let mut bad = BTreeSet::new();
    loop {
        for host in &hosts {
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
