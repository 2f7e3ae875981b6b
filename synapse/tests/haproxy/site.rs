//! A folder with a haproxy.cfg of one service, and a haproxy that is started or adopted on it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use smartstack_common::atomic::{Durability, Mode, replace};
use smartstack_common::testing::{Dir, Haproxy as Real, free_port};
use synapse::config;
use synapse::outputs::haproxy::cfg::effective::Scope;
use synapse::outputs::haproxy::cfg::generation::Generation;
use synapse::outputs::haproxy::cfg::{Model, Ours};
use synapse::outputs::haproxy::plan::Desired;
use synapse::outputs::haproxy::process::{Digests, Haproxy};
use synapse::outputs::haproxy::socket::ServerRow;

/// One service `b` behind a local port.
pub(crate) struct Site {
    pub(crate) dir: Dir,
    pub(crate) port: u16,
    pub(crate) config: PathBuf,
    pub(crate) stats: PathBuf,
    /// Kills whatever runs on the file at the end.
    pub(crate) real: Option<Real>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let dir = Dir::new();
        let (config, stats) = (dir.join("haproxy.cfg"), dir.join("stats.sock"));
        let real = Some(Real::attach(&config, &stats));
        Self {
            port: free_port(),
            config,
            stats,
            real,
            dir,
        }
    }

    /// Starts a haproxy that is not ours.
    pub(crate) async fn start_foreign(&mut self) {
        // The one before would kill it at its end.
        self.real = None;
        self.real = Some(Real::start(&self.config, &self.stats).await);
    }

    /// The harness's view of whatever runs on the file.
    pub(crate) fn real(&self) -> &Real {
        self.real
            .as_ref()
            .expect("it is missing only while another starts")
    }

    /// Kills it, master and workers.
    pub(crate) fn kill(&mut self) {
        self.real
            .as_mut()
            .expect("it is missing only while another starts")
            .kill();
    }

    /// Where clients go.
    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// The file's text with these lines in the backend and, at the end, whole sections.
    fn text(&self, backend: &[String], sections: &str, description: &str) -> String {
        let backend: String = backend.iter().map(|line| format!("\t{line}\n")).collect();
        format!(
            "global\n\tstats socket {} mode 600 level admin expose-fd listeners\n\thard-stop-after 20s\n\t{description}\ndefaults\n\tmode http\n\toption idle-close-on-response\n\toption redispatch 1\n\tretries 3\n\ttimeout connect 1s\n\ttimeout client 30s\n\ttimeout server 30s\n\tdefault-server inter 5s\nfrontend f\n\tbind 127.0.0.1:{}\n\tdefault_backend b\nbackend b\n{backend}{sections}",
            self.stats.display(),
            self.port,
        )
    }

    /// Writes the file and says what it wants.
    pub(crate) fn write(&self, backend: &[String], sections: &str) -> Desired {
        let desired = |text: &str| {
            let model = Model::parse(text, Ours::All);
            let generation = Generation::of(
                model.sections.iter().map(AsRef::as_ref),
                &Default::default(),
            );
            Desired {
                generation,
                backends: Scope::default().read(&model),
                admits_checked: Default::default(),
                weights: true,
            }
        };
        let plain = desired(&self.text(backend, sections, ""));
        let text = self.text(backend, sections, &plain.generation.description(None));
        let desired = desired(&text);
        assert_eq!(
            desired.generation, plain.generation,
            "the mark is not part of the generation"
        );
        replace(&self.config, [text], Mode::Kept(0o644), Durability::Rename)
            .expect("the folder is writable");
        desired
    }

    /// A haproxy of ours.
    pub(crate) fn haproxy(&self, reload: config::Reload) -> Haproxy {
        Haproxy::new(&self.settings(reload))
    }

    /// The same, which serves what is wanted, so many servers.
    pub(crate) async fn started(
        &self,
        reload: config::Reload,
        desired: &Desired,
        servers: usize,
    ) -> Haproxy {
        let mut haproxy = self.haproxy(reload);
        let outcome = haproxy.start(Some(&desired.generation), servers).await;
        assert!(outcome.succeeded(), "{outcome:?}");
        haproxy
    }

    pub(crate) fn settings(&self, reload: config::Reload) -> config::Haproxy {
        config::Haproxy {
            global: Vec::new(),
            defaults: Vec::new(),
            extra_sections: Vec::new(),
            places: std::collections::BTreeMap::new(),
            do_writes: true,
            do_reloads: true,
            do_socket: true,
            check_command: None,
            config_file_path: self.config.clone(),
            candidate_config_file_path: self.dir.join("candidate.cfg"),
            reload,
            reload_timeout: Duration::from_secs(20),
            replace_hung_after: None,
            socket_file_path: vec![self.stats.clone()],
            restart_interval: Duration::ZERO,
            restart_jitter: 0.0,
            state_file_path: None,
            admit: config::Admit::Ready,
            server_order_seed: None,
            max_server_id: 65535,
            bind_address: "localhost".to_owned(),
            shared_frontend: None,
            use_nerve_weights: false,
            binary: "haproxy".to_owned(),
            hitless_defaults: true,
            allowed_server_options: Vec::new(),
            separate_names: None,
            templates: config::Templates::default(),
        }
    }

    /// The reload command of the harness: starts a daemon, or hands over from the running one.
    pub(crate) fn command(&self) -> config::Reload {
        config::Reload::Command(Real::reload_command(&self.config, &self.stats))
    }
}

/// `server NAME ADDRESS id N ...`, numbered from 1.
pub(crate) fn server(number: u32, address: SocketAddr, options: &str) -> String {
    format!("server s{number} {address} id {number} {options}")
}

/// What we have taken out in these tests is what has weight 0.
pub(crate) fn taken_out(row: &ServerRow) -> bool {
    row.weight == 0
}

/// What the worker was loaded with.
pub(crate) fn digests(desired: &Desired) -> Digests {
    let of = |backend: &synapse::outputs::haproxy::cfg::effective::Backend| {
        backend
            .servers
            .iter()
            .map(|(n, s)| (n.clone(), s.digest.clone()))
            .collect()
    };
    desired
        .backends
        .iter()
        .map(|(name, backend)| (name.clone(), of(backend)))
        .collect()
}
