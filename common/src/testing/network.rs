//! Hosts in network namespaces of this machine, joined by a bridge in one more, and what cuts them off from each other.
//! This process is on the network as well, with an address of its own, so that it can play the apps and the clients.
//!
//! Needs root and the commands `ip` and `iptables` (Debian: iproute2, iptables). Outside of the namespaces it makes one
//! interface and one address of 198.18.0.0/15 (RFC 2544: for tests of networks), and changes no rule and no setting. All
//! of it goes when the [`Network`] is dropped, also in a panic; after a SIGKILL, `ip netns delete` the `smartstack-*`.

use std::fs::File;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::Command;

use nix::sched::{CloneFlags, setns};

use super::server::find_program;

const HINT: &str =
    "`apt-get install iproute2 iptables`, or `make deps`; making network namespaces needs root";
/// Networks of 256 addresses in 198.18.0.0/15.
const NETWORKS: u16 = 512;

/// How a host is cut off from a peer. Packets are dropped in silence, except for the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partition {
    /// Neither hears the other.
    Both,
    /// The peer does not hear the host.
    Out,
    /// The host does not hear the peer.
    In,
    /// The host has a blackhole route to the peer: what it sends fails at once, locally.
    Blackhole,
}

/// A host of a [`Network`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    namespace: String,
    /// Its address.
    pub address: Ipv4Addr,
}

impl Host {
    /// The namespace's file.
    pub(super) fn namespace(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.namespace)
    }

    /// Does `work` on this host, in a thread of its own: a socket that it makes stays there.
    ///
    /// # Panics
    /// When there is no way into it, or `work` panics.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.namespace()).expect("its namespace stands");
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect(HINT);
                work()
            });
            there.join().expect("what is done there succeeds")
        })
    }
}

/// A network of hosts; gone when dropped. Processes in it must have ended before.
#[derive(Debug)]
pub struct Network {
    number: u16,
    /// The namespace of the bridge; its name is what makes the number ours.
    bridge: String,
    hosts: Vec<Host>,
}

impl Network {
    /// A network without hosts.
    ///
    /// # Panics
    /// When it cannot be made, with a hint.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it changes the machine")]
    pub fn new() -> Self {
        let mut problem = String::new();
        let number = (0..1000)
            .map(|_| fastrand::u16(0..NETWORKS))
            .find(|number| {
                // Fails when there is one of this name.
                let made = run("ip", &format!("netns add smartstack-{number}"));
                made.map_err(|error| problem = error).is_ok()
            });
        let number =
            number.unwrap_or_else(|| panic!("no network namespace: {problem}\nhint: {HINT}"));
        let network = Self {
            number,
            bridge: format!("smartstack-{number}"),
            hosts: Vec::new(),
        };
        let (bridge, here) = (&network.bridge, format!("smartstack{number}"));
        ip(&format!("-n {bridge} link add bridge type bridge"));
        ip(&format!("-n {bridge} link set bridge up"));
        ip(&format!(
            "link add {here} type veth peer name here netns {bridge}"
        ));
        ip(&format!("-n {bridge} link set here master bridge up"));
        ip(&format!("address add {}/24 dev {here}", network.here()));
        ip(&format!("link set {here} up"));
        network
    }

    /// This process's address on it.
    #[must_use]
    pub fn here(&self) -> Ipv4Addr {
        self.address(254)
    }

    /// One more host.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn host(&mut self) -> Host {
        let number = u8::try_from(self.hosts.len() + 1).expect("fewer than 254 hosts");
        let (bridge, namespace) = (&self.bridge, format!("{}-{number}", self.bridge));
        ip(&format!("netns add {namespace}"));
        let host = Host {
            namespace: namespace.clone(),
            address: self.address(number),
        };
        // From here on it is removed with the network.
        self.hosts.push(host.clone());
        ip(&format!(
            "link add eth0 netns {namespace} type veth peer name port{number} netns {bridge}"
        ));
        ip(&format!(
            "-n {bridge} link set port{number} master bridge up"
        ));
        ip(&format!(
            "-n {namespace} address add {}/24 dev eth0",
            host.address
        ));
        ip(&format!("-n {namespace} link set eth0 up"));
        ip(&format!("-n {namespace} link set lo up"));
        host
    }

    /// Cuts `host` off from `peers`.
    ///
    /// # Panics
    /// When the rule or route cannot be made.
    pub fn cut(&self, host: &Host, peers: &[&Host], partition: Partition) {
        for peer in peers {
            let address = peer.address;
            if matches!(partition, Partition::Both | Partition::Out) {
                rule(host, &format!("-A OUTPUT -d {address} -j DROP"));
            }
            if matches!(partition, Partition::Both | Partition::In) {
                rule(host, &format!("-A INPUT -s {address} -j DROP"));
            }
            if partition == Partition::Blackhole {
                ip(&format!(
                    "-n {} route add blackhole {address}/32",
                    host.namespace
                ));
            }
        }
    }

    /// Ends all that [`Network::cut`] did on `host`.
    ///
    /// # Panics
    /// When rules or routes cannot be removed.
    pub fn mend(&self, host: &Host) {
        rule(host, "-F");
        ip(&format!("-n {} route flush type blackhole", host.namespace));
    }

    /// The kernel of `host` gives connections no other ports of their own than these.
    ///
    /// # Panics
    /// When that cannot be set.
    pub fn local_ports(&self, host: &Host, ports: RangeInclusive<u16>) {
        let (first, last) = (ports.start(), ports.end());
        ip(&format!(
            "netns exec {} sysctl -q -w net.ipv4.ip_local_port_range={first}\t{last}",
            host.namespace
        ));
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        let [high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(198, 18 + high, low, host)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The interfaces go with them. Err = it was not made.
        for namespace in self.hosts.iter().map(|host| &host.namespace) {
            let _absent = run("ip", &format!("netns delete {namespace}")).is_err();
        }
        let _absent = run("ip", &format!("link delete smartstack{}", self.number)).is_err();
        let _absent = run("ip", &format!("netns delete {}", self.bridge)).is_err();
    }
}

fn rule(host: &Host, words: &str) {
    // `-w`: others may be changing rules.
    let words = format!("netns exec {} iptables -w 10 {words}", host.namespace);
    ip(&words);
}

fn ip(words: &str) {
    if let Err(problem) = run("ip", words) {
        panic!("{problem}\nhint: {HINT}");
    }
}

fn run(program: &str, words: &str) -> Result<(), String> {
    let mut command = Command::new(find_program(program, HINT));
    let output = command
        .args(words.split(' '))
        // `iptables` is where Debian puts servers.
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let problem = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{program} {words}`: {}", problem.trim()))
}
