use super::*;

const TEXT: &str = "# header\nglobal\n\tmaxconn 10 # note\n\ndefaults d\n mode http\nfrontend f\n bind :1\nbackend b from d\n balance roundrobin\n server s1 127.0.0.1:1 id 1 check\n server s2 ::1:2\n server \"q\" 127.0.0.1:3\n server n name:4\n";

fn names(backend: &str, servers: &[&str]) -> BTreeMap<String, BTreeSet<String>> {
    BTreeMap::from([(
        backend.to_owned(),
        servers.iter().map(|s| (*s).to_owned()).collect(),
    )])
}

#[test]
fn sections_servers_and_line_numbers() {
    let model = Model::parse(TEXT, Ours::All);
    let sections: Vec<(&str, &str, usize)> = model
        .sections
        .iter()
        .map(|s| (s.keyword.as_str(), s.name.as_str(), s.number))
        .collect();
    assert_eq!(
        sections,
        [
            ("global", "", 2),
            ("defaults", "d", 5),
            ("frontend", "f", 7),
            ("backend", "b", 9)
        ]
    );
    assert_eq!(model.sections[3].from.as_deref(), Some("d"));
    let servers: Vec<(&str, usize, String)> = model.servers["b"]
        .iter()
        .map(|(n, s)| (n.as_str(), s.number, s.address.to_string()))
        .collect();
    assert_eq!(
        servers,
        [
            ("s1", 11, "127.0.0.1:1".to_owned()),
            ("s2", 12, "[::1]:2".to_owned())
        ]
    );
    // Quoted, and with a name for an address: structure.
    assert_eq!(
        model.sections[3]
            .lines
            .iter()
            .map(|l| l.number)
            .collect::<Vec<_>>(),
        [10, 13, 14]
    );
    assert_eq!(model.lines, 14);
}

#[test]
fn only_known_names_are_ours_and_conditions_are_structure() {
    let model = Model::parse(TEXT, Ours::Names(&names("b", &["s2"])));
    assert_eq!(model.servers["b"].keys().collect::<Vec<_>>(), ["s2"]);
    assert_eq!(model.sections[3].lines.len(), 4);
    let text =
        "backend b\n.if defined(X)\n server s1 127.0.0.1:1\n.endif\n server s2 127.0.0.1:2\n";
    let model = Model::parse(text, Ours::All);
    assert_eq!(model.servers["b"].keys().collect::<Vec<_>>(), ["s2"]);
}

#[test]
fn duplicate_names_stay_visible() {
    let model = Model::parse(
        "backend b\n server s 127.0.0.1:1\n server s 127.0.0.1:2\n",
        Ours::All,
    );
    assert_eq!(model.servers["b"]["s"].address.port(), 1);
    assert_eq!(model.sections[0].lines.len(), 1);
}

#[test]
fn structure_ignores_servers_order_of_servers_and_layout_but_keeps_the_order_of_lines() {
    let model = |text: &str| Model::parse(text, Ours::All);
    let base =
        model("backend b\n mode http\n option x\n server a 127.0.0.1:1\n server c 127.0.0.1:2\n");
    assert!(base.same_structure(&model(
        "\n# x\nbackend b\n\tmode http\n server c 127.0.0.1:2\n option x\n"
    )));
    assert!(!base.same_structure(&model("backend b\n option x\n mode http\n")));
    assert!(!base.same_structure(&model("backend b\n mode http\n option x\nbackend c\n")));
}

#[test]
fn merged_fragments_are_the_whole_file() {
    let (frame, service) = TEXT.split_at(TEXT.find("frontend").unwrap());
    let mut merged = Model::parse(frame, Ours::All);
    merged.merge(&Model::parse(service, Ours::All));
    let whole = Model::parse(TEXT, Ours::All);
    assert!(merged.same_structure(&whole));
    assert_eq!(
        merged.servers["b"].keys().collect::<Vec<_>>(),
        whole.servers["b"].keys().collect::<Vec<_>>()
    );
    assert_eq!(merged.lines, whole.lines);
}

#[test]
fn lines_are_found_in_their_fragment() {
    let map = FragmentMap::new([3, 0, 2]);
    assert_eq!(
        [0, 1, 3, 4, 5, 6].map(|l| map.locate(l)),
        [
            None,
            Some((0, 1)),
            Some((0, 3)),
            Some((2, 1)),
            Some((2, 2)),
            None
        ]
    );
    assert_eq!(map.range(2), Some(4..6));
}

proptest::proptest! {
    #[test]
    fn any_text_has_a_model(text in "(backend|server|defaults|b|s|127.0.0.1:1|\"|#|\n| |from|\\.if){0,60}") {
        let model = Model::parse(&text, Ours::All);
        let lines: usize = model.sections.iter().map(|s| s.lines.len()).sum();
        proptest::prop_assert!(lines + model.servers.values().map(BTreeMap::len).sum::<usize>() <= model.lines);
    }
}
