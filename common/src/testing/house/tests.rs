//! Each rule broken on purpose, on small texts.

use super::*;

/// A program of two floors that keeps every rule.
const GOOD: &[(&str, &str)] = &[
    (
        "lib.rs",
        "mod program; mod outputs; mod sources; mod wanted;\npub use program::run;",
    ),
    (
        "program.rs",
        "use crate::outputs::Output;\npub fn run() { Output::new(crate::sources::read()); }",
    ),
    (
        "outputs.rs",
        "mod plan; mod socket;\npub(crate) use self::plan::Plan;\nuse crate::wanted::Wanted;\npub(crate) struct Output(Wanted);",
    ),
    (
        "outputs/plan.rs",
        "use std::time::Duration;\nuse tokio::time::Instant;\nuse crate::wanted::Wanted;\npub(crate) struct Plan { at: Instant }\n\
         impl Plan { fn age(&self, now: Instant) -> Duration { now - self.at.min(Instant::max(now, now)) } }\n\
         #[cfg(test)] mod tests { use crate::program::run; fn now() { std::fs::read(\"x\"); Instant::now(); } }",
    ),
    (
        "outputs/socket.rs",
        "use super::Plan;\nuse tokio::net::UnixStream;\nfn send(plan: &Plan) {}",
    ),
    (
        "sources.rs",
        "use crate::wanted::Wanted;\npub(crate) fn read() -> Wanted { Wanted }",
    ),
    ("wanted.rs", "pub(crate) struct Wanted;"),
];

const RULES: House<'_> = House {
    floors: &[
        Floor {
            within: "",
            rooms: &["program", "outputs", "sources", "wanted"],
        },
        Floor {
            within: "outputs",
            rooms: &["socket", "plan"],
        },
    ],
    apart: &[("sources", "outputs")],
    families: false,
    pure: &["outputs::plan", "wanted"],
    exceptions: &[],
};

/// The faults of the good program, with these files in place of its own or added.
fn faults(rules: &House<'_>, changed: &[(&str, &str)]) -> Vec<Fault> {
    let mut files: BTreeMap<&str, &str> = GOOD.iter().copied().collect();
    files.extend(changed.iter().copied());
    rules.faults_of(&|file| files.get(file).map(|text| (*text).to_owned()))
}

fn keys(changed: &[(&str, &str)]) -> Vec<String> {
    faults(&RULES, changed)
        .into_iter()
        .map(|fault| fault.key)
        .collect()
}

#[test]
fn a_good_house_has_no_faults() {
    assert_eq!(faults(&RULES, &[]), []);
}

/// However an import upwards is written.
#[test]
fn an_arrow_goes_down_the_list() {
    for upwards in [
        "use crate::sources::read;",
        "use super::sources::{read};",
        "use crate::{sources, sources as s};",
        "fn f() { crate::sources::read(); }",
        "fn f() { use crate::sources; }",
        "use crate::sources as s;\nfn f() { s::read(); }",
        "fn f() { println!(\"{}\", crate::sources::read()); }",
        "fn f() -> Vec<super::sources::X> { vec![] }",
        "mod inline { use super::super::sources::read; }",
        "pub use crate::sources::*;",
    ] {
        assert_eq!(
            keys(&[("wanted.rs", upwards)]),
            ["circle sources, wanted", "wanted -> sources"]
                .into_iter()
                .rev()
                .collect::<Vec<_>>(),
            "{upwards}"
        );
    }
    let told = faults(&RULES, &[("outputs/plan.rs", "\nuse super::socket::send;")]);
    assert_eq!(told[0].key, "outputs::plan -> outputs::socket");
    assert!(
        told[0].what.starts_with("src/outputs/plan.rs:2: "),
        "{}",
        told[0]
    );
}

#[test]
fn an_import_leads_through_its_doors_to_the_file_behind() {
    // `outputs` lets `Plan` through; whoever takes it there knows `plan` and not `outputs`.
    let program = "use crate::outputs::Plan;\nuse crate::end as fin;\npub fn run() { fin(); }";
    let lib = "mod program; mod outputs; mod sources; mod wanted;\npub use program::run;\npub use wanted::end;";
    assert_eq!(
        keys(&[("program.rs", program), ("lib.rs", lib)]),
        [] as [&str; 0]
    );
    let wanted = "use crate::run;";
    assert_eq!(keys(&[("wanted.rs", wanted)])[0], "wanted -> program");
    // One that is made for the file's own use is a door for those below it.
    let plan = "use super::Wanted;";
    assert_eq!(keys(&[("outputs/plan.rs", plan)]), [] as [&str; 0]);
}

#[test]
fn every_file_has_a_room_and_every_room_a_file() {
    let lib = "mod program; mod outputs; mod sources; mod wanted; mod shed;";
    assert_eq!(keys(&[("lib.rs", lib), ("shed.rs", "")]), ["shed"]);
    let lib = "mod program; mod outputs; mod wanted;";
    let program = "use crate::outputs::Output;";
    assert_eq!(
        keys(&[("lib.rs", lib), ("program.rs", program)]),
        ["sources"]
    );
}

#[test]
fn rooms_that_are_apart_never_meet() {
    let outputs =
        "mod plan; mod socket;\npub(crate) use self::plan::Plan;\nuse crate::sources::read;";
    assert_eq!(
        keys(&[("outputs.rs", outputs), ("program.rs", "")]),
        ["outputs -> sources"]
    );
}

#[test]
fn no_circle_of_files() {
    let outputs =
        "mod plan; mod socket;\nuse self::plan::Plan;\nuse crate::wanted::Wanted;\nstruct Output;";
    let plan = "use super::Output;\npub(crate) struct Plan;";
    let circle = [
        ("outputs.rs", outputs),
        ("outputs/plan.rs", plan),
        ("program.rs", ""),
    ];
    let told = faults(&RULES, &circle);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].key, "circle outputs, outputs::plan");
    assert!(
        told[0].what.contains("src/outputs.rs:2: ")
            && told[0].what.contains("src/outputs/plan.rs:1: "),
        "{}",
        told[0]
    );
    let together = House {
        families: true,
        ..RULES
    };
    assert_eq!(faults(&together, &circle), []);
    // Of three, none of them above another.
    let rules = House {
        floors: &[],
        families: true,
        ..RULES
    };
    let three = [
        ("wanted.rs", "use crate::program::run;"),
        ("program.rs", "use crate::sources::read;\npub fn run() {}"),
    ];
    assert_eq!(
        faults(&rules, &three)[0].key,
        "circle program, sources, wanted"
    );
}

#[test]
fn pure_modules_name_no_input_output_and_no_clock() {
    for (text, word) in [
        ("use tokio::net::TcpStream;", "tokio::net::TcpStream"),
        ("use tokio::{time::{sleep, Instant}};", "tokio::time::sleep"),
        ("use std::fs;\nfn f() { }", "std::fs"),
        ("fn f() { std::fs::read(\"x\"); }", "std::fs::read"),
        (
            "fn f() { assert!(std::fs::exists(\"x\")); }",
            "std::fs::exists",
        ),
        ("use std::net::{IpAddr, TcpStream};", "std::net::TcpStream"),
        ("use nix::errno::Errno;", "nix::errno::Errno"),
        ("fn f() { tokio::spawn(g()); }", "tokio::spawn"),
        (
            "use tokio::time::Instant;\nfn f() { Instant::now(); }",
            "tokio::time::Instant::now",
        ),
        (
            "use common::Moment as M;\nfn f() { M::now(); }",
            "common::Moment::now",
        ),
        ("fn f(at: Instant) { at.elapsed(); }", ".elapsed"),
        (
            "fn f(at: Instant) { print!(\"{}\", at.elapsed()); }",
            ".elapsed",
        ),
    ] {
        let text = text.replace("\\n", "\n");
        let told = keys(&[("outputs/plan.rs", &text), ("outputs/socket.rs", "")]);
        assert_eq!(told, [format!("outputs::plan names {word}")], "{text}");
    }
    // A word that only begins alike, a value, a test.
    let fine = "use tokio::time::Instant;\nuse std::net::IpAddr;\nuse nixie::x;\nfn f(now: Instant) { g(now); }\n\
                #[test] fn t() { Instant::now(); }\n#[cfg(test)] impl X { fn u() { std::fs::read(\"\"); } }";
    assert_eq!(keys(&[("wanted.rs", fine)]), [] as [&str; 0]);
    let rules = House {
        pure: &["outputs::plans"],
        ..RULES
    };
    assert_eq!(faults(&rules, &[])[0].key, "outputs::plans");
}

#[test]
fn no_giants() {
    let fields = |count: usize| (0..count).map(|n| format!("f{n}: u8,")).collect::<String>();
    let lines = |count: usize| "\n".repeat(count - 1);
    for (text, key) in [
        (
            format!("struct Big {{ {} }}", fields(FIELDS + 1)),
            Some("wanted::Big"),
        ),
        (format!("struct Fine {{ {} }}", fields(FIELDS)), None),
        (
            format!("#[cfg(test)] struct Big {{ {} }}", fields(FIELDS + 1)),
            None,
        ),
        (
            format!("/// Of\n/// more\nasync fn long() {{{}}}", lines(LINES + 1)),
            Some("wanted::long"),
        ),
        (
            format!("/// Of\n/// as many\nfn fine() {{{}}}", lines(LINES)),
            None,
        ),
        (
            format!(
                "struct S; impl<T> Trait for S {{ fn long(&self) {{{}}} }}",
                lines(LINES + 1)
            ),
            Some("wanted::S::long"),
        ),
        (
            format!("trait T {{ fn long(&self) {{{}}} }}", lines(LINES + 1)),
            Some("wanted::T::long"),
        ),
        (
            format!("mod inline {{ fn long() {{{}}} }}", lines(LINES + 1)),
            Some("wanted::long"),
        ),
    ] {
        let told = keys(&[
            ("wanted.rs", &text),
            ("program.rs", ""),
            ("sources.rs", ""),
            ("outputs.rs", "mod plan; mod socket;"),
            ("outputs/plan.rs", ""),
            ("outputs/socket.rs", ""),
        ]);
        assert_eq!(told.first().map(String::as_str), key, "{text}");
    }
}

#[test]
fn exceptions_have_a_reason_and_end_with_it() {
    let upwards = [("wanted.rs", "use crate::program::X;")];
    let keys = |exceptions| -> Vec<String> {
        let rules = House {
            exceptions,
            ..RULES
        };
        faults(&rules, &upwards)
            .into_iter()
            .map(|fault| fault.key)
            .collect()
    };
    let circles = [
        "circle outputs, wanted, program",
        "circle program, sources, wanted",
    ];
    assert_eq!(keys(&[("wanted -> program", "until tomorrow")]), circles);
    assert!(
        keys(&[("wanted -> program", "")]).contains(&"wanted -> program".to_owned()),
        "no reason"
    );
    assert!(
        keys(&[("wanted -> sources", "it did once")]).contains(&"wanted -> sources".to_owned()),
        "stale"
    );
}

/// What could be taken for something else.
#[test]
fn texts_and_comments_are_no_code() {
    let text = r##"
        //! use crate::program::a;
        /* use crate::program::b; /* again */ use crate::program::c; */
        const A: &str = "use crate::program::d; \" crate::program::e";
        const B: &str = r#"crate::program::f " "#;
        const C: [char; 3] = ['"', '\'', '\\'];
        fn f<'a>(x: &'a str) -> impl Fn() -> u8 + use<'a> { move || 1.max(0..2) }
        fn g() { let a = b'"'; let b = b"crate::program::h"; }
        #[doc = "crate::program::i"]
        #[cfg(test)]
        use crate::program::{j, k};
        #[cfg(all(test, unix))]
        mod tests;
        struct S { #[cfg(test)] a: crate::program::L, b: Vec<(u8, u8)>, }
        fn h() { #[cfg(test)] crate::program::m(); let x = 1; }
    "##;
    assert_eq!(keys(&[("wanted.rs", text)]), [] as [&str; 0]);
    let after = format!("{text}fn last() {{ crate::program::run() }}");
    let told = faults(&RULES, &[("wanted.rs", &after)]);
    assert_eq!(told[0].key, "wanted -> program");
    assert!(
        told[0].what.starts_with("src/wanted.rs:16: "),
        "{}",
        told[0]
    );
}
