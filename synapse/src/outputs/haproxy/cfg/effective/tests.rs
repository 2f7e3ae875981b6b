use super::*;
use crate::outputs::haproxy::cfg::Ours;

fn backends(text: &str) -> BTreeMap<String, Arc<Backend>> {
    Scope::default().read(&Model::parse(text, Ours::All))
}

fn options(text: &str) -> String {
    backends(text)["b"].servers["s"].options.to_string()
}

#[test]
fn the_last_word_wins_through_all_layers() {
    let text = "defaults\n default-server inter 5s rise 4 check\nbackend b\n default-server inter 6000\n server s 127.0.0.1:1 fall 9 rise 7\n";
    assert_eq!(options(text), "check fall 9 inter 6000 rise 7");
    // Back to the built-in is as if nothing had been said.
    assert_eq!(
        options(&text.replace("rise 7", "rise 2 inter 2s no-check")),
        "fall 9"
    );
}

#[test]
fn the_defaults_in_force_are_the_last_or_the_named() {
    let text = "defaults a\n default-server rise 8\ndefaults c from a\n default-server fall 8\nbackend b\n server s 127.0.0.1:1\n";
    assert_eq!(options(text), "fall 8 rise 8");
    assert_eq!(
        options(&text.replace("backend b", "backend b from a")),
        "rise 8"
    );
    assert_eq!(
        options(&text.replace("backend b", "defaults\nbackend b")),
        ""
    );
}

#[test]
fn fragments_are_read_in_the_scope_of_the_frame() {
    let mut scope = Scope::default();
    scope.read(&Model::parse(
        "defaults\n default-server rise 8\n",
        Ours::All,
    ));
    let first = scope.read(&Model::parse(
        "backend b\n default-server fall 8\n server s 127.0.0.1:1\n",
        Ours::All,
    ));
    let second = scope.read(&Model::parse(
        "backend c\n server s 127.0.0.1:1\n",
        Ours::All,
    ));
    assert_eq!(first["b"].servers["s"].options.to_string(), "fall 8 rise 8");
    assert_eq!(second["c"].servers["s"].options.to_string(), "rise 8");
}

#[test]
fn default_server_counts_from_its_line_on() {
    assert_eq!(
        options("backend b\n server s 127.0.0.1:1\n default-server check\n"),
        ""
    );
}

#[test]
fn cookies_are_inert_without_the_directive() {
    let text = "defaults\n mode http\nbackend b\n server s 127.0.0.1:1 cookie v\n";
    assert_eq!(options(text), "");
    assert_eq!(
        options(&text.replace("mode http", "cookie SRV insert")),
        "cookie v"
    );
    assert_eq!(options(&format!("{text} cookie SRV insert\n")), "cookie v");
}

#[test]
fn id_weight_and_disabled_are_apart() {
    let backends = backends(
        "backend b\n default-server disabled weight 9\n server s 127.0.0.1:1 id 7\n server t 127.0.0.1:2 enabled weight 3 weight 4\n",
    );
    let (s, t) = (&backends["b"].servers["s"], &backends["b"].servers["t"]);
    assert_eq!(
        (s.id, s.weight, s.disabled, s.options.to_string()),
        (Some(7), 9, true, String::new())
    );
    assert_eq!(
        (t.id, t.weight, t.disabled, t.options.to_string()),
        (None, 4, false, String::new())
    );
}

#[test]
fn unknown_arity_and_quotes_make_a_backend_reload_only() {
    let unknown =
        backends("backend b\n server s 127.0.0.1:1 newfangled a b check\n server t 127.0.0.1:2\n");
    assert!(
        unknown["b"]
            .reload_only
            .as_ref()
            .unwrap()
            .contains("`newfangled`")
    );
    assert_eq!(
        unknown["b"].servers["s"].options.to_string(),
        "newfangled a b check"
    );
    let quoted =
        backends("defaults\n default-server sni \"str(x)\"\nbackend b\n server s 127.0.0.1:1\n");
    assert!(
        quoted["b"]
            .reload_only
            .as_ref()
            .unwrap()
            .contains("default-server")
    );
    assert_eq!(
        backends("backend b\n server s 127.0.0.1:1 source 1.2.3.4 usesrc clientip\n")["b"]
            .reload_only,
        None
    );
}

#[test]
fn structural_servers_are_known_by_name() {
    let text = "backend b\n server x name:1\n server-template t 2-3 127.0.0.1:1\n";
    let b = &backends(text)["b"];
    assert_eq!(b.structural.iter().collect::<Vec<_>>(), ["t2", "t3", "x"]);
    assert!(!b.unreadable);
    assert!(backends("backend b\n server \"x\" name:1\n")["b"].unreadable);
}
