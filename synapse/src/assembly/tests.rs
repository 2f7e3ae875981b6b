use std::sync::Arc;

use super::*;
use crate::good::Good;
use crate::ids::tests::server;
use crate::render::tests::{config, service};

/// A service with these servers, rendered.
fn piece(servers: &[Identified]) -> Piece {
    let renderer = Renderer::new(&config()).unwrap();
    Piece::render(&renderer, &Arc::new(service("web")), servers).unwrap()
}

fn three() -> Vec<Identified> {
    let one = |port: u16| Identified {
        server: server("10.0.0.1", port),
        id: u32::from(port),
    };
    [1, 2, 3].map(one).to_vec()
}

#[test]
fn a_piece_with_fewer_servers_is_what_the_template_would_make_of_them() {
    let all = piece(&three());
    assert_eq!(all.names().len(), 3);
    let fewer = all.keeping(|name| name != "10.0.0.1:2");
    let expected = piece(&[three()[0].clone(), three()[2].clone()]);
    assert_eq!(fewer.fragment.text, expected.fragment.text);
    assert_eq!(fewer.names(), expected.names());
    assert_eq!(fewer.structure(), all.structure());
    assert_eq!(fewer.servers.len(), 2);
    assert_eq!(all.keeping(|_| true).fragment.text, all.fragment.text);
    assert!(all.keeping(|_| false).names().is_empty());
}

#[test]
fn the_fragment_of_a_former_file_follows_what_is_wanted() {
    let written = piece(&three());
    let others = "global\n\tmaxconn 7\n\nbackend other\n\tserver x 10.0.0.9:1 id 1\n";
    let file = format!(
        "{others}{}\nlisten last\n\tbind :1\n",
        written.fragment.text
    );
    let web = Arc::new(service("web"));
    let good = Good::of_file(&file, std::slice::from_ref(&web));
    let all = good.piece(&web, &three()).unwrap();
    assert_eq!(all.names(), written.names());
    assert_eq!(all.structure(), written.structure());
    assert!(!all.fragment.text.contains("other") && !all.fragment.text.contains("last"));
    // Its lines hold what was registered then: a new server has none.
    let fewer = good.piece(&web, &three()[1..2]).unwrap();
    assert_eq!(fewer.names(), BTreeSet::from(["10.0.0.1:2"]));
    assert!(
        good.piece(&Arc::new(service("unknown")), &three())
            .is_none()
    );
}
