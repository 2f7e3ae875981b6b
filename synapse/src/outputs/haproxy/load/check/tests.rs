use std::sync::Arc;

use super::*;
use crate::model::server::Identified;
use crate::outputs::haproxy::backend::ids::tests::server;
use crate::outputs::haproxy::render::Renderer;
use crate::outputs::haproxy::render::tests::{config, service};

/// A service whose configuration gives `configured`, and servers with options of their own (`""`: none).
fn piece(configured: &str, own: &[&str]) -> Piece {
    let mut service = service("web");
    if let Some(haproxy) = &mut service.haproxy {
        configured.clone_into(&mut haproxy.server_options);
    }
    let servers: Vec<Identified> = (1..)
        .zip(own)
        .map(|(port, options)| {
            let mut server = server("10.0.0.1", port);
            server.options = Some((*options).to_owned()).filter(|text| !text.is_empty());
            Identified {
                server: server.into(),
                id: u32::from(port),
            }
        })
        .collect();
    let renderer = Renderer::new(&config()).unwrap();
    Piece::render(&renderer, &Arc::new(service), &servers).unwrap()
}

/// haproxy complains about these servers.
fn about(ports: &[u16]) -> BTreeMap<(String, String), String> {
    let server = |port: &u16| {
        (
            ("web".to_owned(), format!("10.0.0.1:{port}")),
            "no".to_owned(),
        )
    };
    ports.iter().map(server).collect()
}

fn faults(piece: &Piece, former: Option<&Piece>, ports: &[u16]) -> Vec<String> {
    own_faults(piece, former, &about(ports))
        .into_keys()
        .collect()
}

#[test]
fn options_of_one_server_are_blamed_when_the_others_are_well() {
    let now = piece("check", &["", "proto h9", "backup"]);
    assert_eq!(faults(&now, None, &[2]), ["proto h9"]);
    assert_eq!(faults(&now, Some(&now), &[2]), ["proto h9"]);
    assert_eq!(faults(&now, None, &[]), [""; 0]);
    assert_eq!(faults(&now, None, &[7]), [""; 0]);
    // The only server: nothing else has changed.
    let only = piece("check", &["proto h9"]);
    assert_eq!(
        faults(&only, Some(&piece("check", &[])), &[1]),
        ["proto h9"]
    );
}

#[test]
fn options_of_the_service_are_not_blamed_on_servers() {
    // A server without options of its own is complained about, too.
    let now = piece("proto h9", &["", "backup"]);
    assert_eq!(faults(&now, None, &[1, 2]), [""; 0]);
    // Every server is, and the service's options are new.
    let now = piece("proto h9", &["backup", "weight 3"]);
    assert_eq!(
        faults(
            &now,
            Some(&piece("check", &["backup", "weight 3"])),
            &[1, 2]
        ),
        [""; 0]
    );
}
