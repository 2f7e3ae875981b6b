use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::outputs::haproxy::backend::ids::tests::server;
use crate::outputs::haproxy::file::good::Good;
use crate::outputs::haproxy::render::tests::{config, service};

/// A service with these servers, rendered.
fn piece(servers: &[Identified]) -> Piece {
    let renderer = Renderer::new(&config()).unwrap();
    Piece::render(&renderer, &Arc::new(service("web")), servers).unwrap()
}

fn three() -> Vec<Identified> {
    let one = |port: u16| Identified {
        server: server("10.0.0.1", port).into(),
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

/// A server that shows every part a line can have.
fn any_server(number: u8, shape: u8) -> Identified {
    let bit = |n: u8| shape & (1 << n) != 0;
    let mut server = server(&format!("10.0.0.{number}"), 80);
    server.weight = bit(0).then_some(u16::from(number));
    server.options = bit(1).then(|| "weight 7 maxconn 5".to_owned());
    server.disabled = bit(2);
    Identified {
        server: server.into(),
        id: u32::from(number),
    }
}

fn services() -> Vec<Arc<Service>> {
    let service = |name: &str, change: &dyn Fn(&mut crate::config::ServiceHaproxy)| {
        let mut service = service(name);
        change(service.haproxy.as_mut().unwrap());
        Arc::new(service)
    };
    vec![
        service("web", &|h| {
            h.frontend =
                vec!["use_backend checked if { srv_is_up(checked/away_10.0.0.9:80) }".to_owned()];
        }),
        service("checked", &|h| {
            h.server_options = "check inter 2s weight 3".to_owned();
            h.backend = vec!["mode tcp".to_owned(), "default-server rise 9".to_owned()];
        }),
        service("quoted", &|h| {
            h.server_options = "check \"inter\" 2s".to_owned();
        }),
        service("own", &|h| {
            h.backend = vec!["server spare 127.0.0.1:1 backup".to_owned()];
            h.cookie_hash = true;
        }),
        service("shared", &|h| {
            h.shared_frontend = vec!["use_backend shared".to_owned()];
        }),
    ]
}

proptest! {
    /// However a file came about, piece by piece: it is the one that is made at once, and means the same.
    #[test]
    fn kept_piece_by_piece_as_made_at_once(
        steps in proptest::collection::vec((0usize..5, proptest::option::weighted(0.9, proptest::collection::btree_map(1u8..20, 0u8..8, 0..6))), 1..20),
        weights: bool, whole_template: bool,
    ) {
        let mut config = config();
        config.haproxy.use_nerve_weights = weights;
        config.haproxy.shared_frontend = Some(vec!["bind 127.0.0.1:1".to_owned()]);
        // Those that are left out and named leave an empty backend.
        config.services = services().iter().map(|service| (**service).clone()).collect();
        if whole_template {
            let text = "{% include \"global.cfg.tera\" %}{% for service in services %}{% include \"service.cfg.tera\" %}{% endfor %}";
            config.haproxy.templates.whole = Some(crate::config::TemplateText { path: "whole".into(), text: text.to_owned() });
        }
        let renderer = Arc::new(Renderer::new(&config).unwrap());
        let services = services();
        let mut pieces: Vec<Option<Piece>> = vec![None; services.len()];
        let mut kept = Whole::new(&renderer, pieces.clone()).unwrap();
        // What is the same server in two steps is shared between them, as by the funnel.
        let mut known: BTreeMap<(u8, u8), Identified> = BTreeMap::new();
        for (index, servers) in steps {
            let piece = servers.map(|servers| {
                let mut server = |(n, shape)| known.entry((n, shape)).or_insert_with(|| any_server(n, shape)).clone();
                let servers: Vec<Identified> = servers.into_iter().map(&mut server).collect();
                let rendered = Piece::render(&renderer, &services[index], &servers).unwrap();
                let piece = match &pieces[index] {
                    Some(former) => former.with_servers(&renderer, &servers).unwrap(),
                    None => rendered.clone(),
                };
                assert_eq!(piece.fragment.text, rendered.fragment.text);
                let lines = |piece: &Piece| piece.fragment.model.servers.clone().into_lines();
                assert_eq!(lines(&piece), lines(&rendered));
                let some: Vec<Identified> = servers.iter().filter(|s| s.id % 2 == 0).cloned().collect();
                let some = Piece::render(&renderer, &services[index], &some).unwrap();
                let fewer = piece.keeping(|name| some.names().contains(name));
                // Quoted lines are structure and stay.
                if whole_template || lines(&rendered).values().flatten().count() == servers.len() {
                    assert_eq!((&fewer.fragment.text, lines(&fewer)), (&some.fragment.text, lines(&some)));
                }
                assert_eq!(piece.fragment.model.lines, rendered.fragment.model.lines);
                assert_eq!(piece.structure(), rendered.structure());
                piece
            });
            pieces[index] = piece.clone();
            let (before, text) = (kept.revision(), kept.parts().concat());
            kept.set(index, piece).unwrap();
            prop_assert!(kept.revision() != before || kept.is(&text));
            let all: Vec<&Piece> = pieces.iter().flatten().collect();
            let once = assemble(&renderer, &all, &mut EffectiveCache::default()).unwrap();
            prop_assert_eq!(kept.parts().concat(), &*once.text);
            let longer = format!("{}#", once.text);
            prop_assert!(kept.is(&once.text) && !kept.is(&longer) && !kept.is(&once.text[1..]));
            prop_assert_eq!(kept.desired(), &once.desired);
        }
    }
}

#[test]
fn a_service_that_is_left_out_and_named_leaves_an_empty_backend() {
    let mut config = config();
    config.services = services().iter().map(|s| (**s).clone()).collect();
    let renderer = Arc::new(Renderer::new(&config).unwrap());
    let piece = |at: usize| Piece::render(&renderer, &services()[at], &[]).unwrap();
    let (web, checked) = (piece(0), piece(1));
    let text = |pieces: &[&Piece]| {
        let made = assemble(&renderer, pieces, &mut EffectiveCache::default()).unwrap();
        made.text.to_string()
    };
    let stump = "\nbackend checked\n\tmode tcp\n\tserver away_10.0.0.9:80 192.0.2.1:1 check weight 0 disabled\n";
    assert!(text(&[&web]).ends_with(stump), "{}", text(&[&web]));
    assert!(!text(&[&web, &checked]).contains(stump));
    // Nobody names it, or somebody else defines it.
    assert!(!text(&[&piece(2)]).contains("backend checked"));
    config.haproxy.extra_sections = vec![("backend checked".to_owned(), Vec::new())];
    let renderer = Renderer::new(&config).unwrap();
    let made = assemble(&renderer, &[&web], &mut EffectiveCache::default()).unwrap();
    assert_eq!(
        made.text.matches("backend checked").count(),
        2,
        "{}",
        made.text
    );
    // In whatever way it is left out.
    let disabled = config.services[1].haproxy.take().map(Box::new);
    config.services[1].disabled = disabled;
    config.haproxy.extra_sections.clear();
    let renderer = Renderer::new(&config).unwrap();
    let made = assemble(&renderer, &[&web], &mut EffectiveCache::default()).unwrap();
    assert!(made.text.ends_with(stump), "{}", made.text);
}
