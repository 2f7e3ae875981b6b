use super::*;
use crate::outputs::haproxy::plan::State;

#[test]
fn replies_are_told_by_tag_and_words() {
    assert_eq!(Reply::parse("\n"), Reply::Done);
    assert_eq!(
        Reply::parse("[6]: Server deleted."),
        Reply::Text("Server deleted.".to_owned())
    );
    let text =
        "[4]: no need to change the addr, no need to change the port by 'stats socket command'\n";
    assert!(matches!(Reply::parse(text), Reply::Text(_)));
    for (text, refusal) in [
        ("[3]: No such server.\n", Refusal::NoSuchServer),
        ("[3]: No such backend.\n", Refusal::NoSuchBackend),
        ("[3]: Can't find backend.\n", Refusal::NoSuchBackend),
        (
            "[3]: Already exists a server with the same name in backend.\n",
            Refusal::AlreadyExists,
        ),
        (
            "[3]: 'id' : custom id 1 already used at a.cfg:14 ('server s1').\n",
            Refusal::IdUsed,
        ),
        (
            "[3]: Backend must use a dynamic load balancing to support dynamic servers.\n",
            Refusal::NotDynamic,
        ),
        (
            "[3]: Server still has connections attached to it, cannot remove it.",
            Refusal::HasConnections,
        ),
        (
            "[3]: This server cannot be removed at runtime due to other configuration elements pointing to it.",
            Refusal::PointedTo,
        ),
        (
            "[3]: Only servers in maintenance mode can be deleted.",
            Refusal::NotInMaint,
        ),
        ("[3]: Permission denied\n", Refusal::Denied),
        (
            "[3]: 'cookie' option is not accepted for dynamic server\n",
            Refusal::NotAccepted("'cookie' option is not accepted for dynamic server".to_owned()),
        ),
        (
            "[3]: invalid port '99999'\n",
            Refusal::Other("invalid port '99999'".to_owned()),
        ),
        (
            "[6]: Unknown command, but maybe one of\n  help\n",
            Refusal::Other("Unknown command".to_owned()),
        ),
    ] {
        assert_eq!(Reply::parse(text), Reply::Refused(refusal), "{text}");
    }
}

#[test]
fn no_text_ends_a_command() {
    for bad in [
        "",
        "a;b",
        "a b",
        "a\nb",
        "a\\",
        "#1",
        "-a",
        "b/c",
        "é",
        &"x".repeat(129),
    ] {
        let command = Command::State {
            backend: "b".to_owned(),
            server: bad.to_owned(),
            state: AdminState::Ready,
        };
        assert!(matches!(command.text(), Err(ApiError::Name(_))), "{bad}");
        assert!(
            Command::ShowServersState(Some(bad.to_owned()))
                .text()
                .is_err(),
            "{bad}"
        );
    }
}

#[test]
fn batches_stay_small_and_lose_nothing() {
    let texts: Vec<String> = (0..2_000)
        .map(|n| format!("set server b/server_{n} state maint"))
        .collect();
    let pieces = batches(&texts);
    assert!(
        pieces
            .iter()
            .all(|p| OPENING.len() + p.iter().map(|t| t.len() + 1).sum::<usize>() < BATCH)
    );
    assert_eq!(pieces.concat(), texts);
    assert!(batches(&[]).is_empty());
    // One that is too long alone still goes alone.
    let long = ["x".repeat(BATCH), "y".to_owned()];
    assert_eq!(batches(&long).len(), 2);
}

fn lines(commands: &[&str]) -> Vec<String> {
    commands.iter().map(|c| (*c).to_owned()).collect()
}

/// As 2.2.9, 2.6.12, 3.0.11 and 3.2.26 answer, word for word.
#[test]
fn each_line_has_its_answer() {
    let text = "\n> \n> \n> [3]: No such server.\n\n> [6]: New server registered.\n\n> [6]: Server deleted.\n> 1\n# be_id\n\n> ";
    let commands = lines(&[
        "set server b/s1 weight 1",
        "set server b/nope weight 1",
        "add server b/x 127.0.0.1:9 id 9",
        // 2.6 has no empty line behind this one.
        "del server b/y",
        "show servers state b",
    ]);
    let told = |words: &str| Reply::Text(words.to_owned());
    assert_eq!(
        reply::of_lines(text, &commands).unwrap(),
        [
            Reply::Done,
            Reply::Refused(Refusal::NoSuchServer),
            told("New server registered."),
            told("Server deleted."),
            told("1\n# be_id"),
        ]
    );
    assert_eq!(reply::of_lines("\n> \n> ", &[]), Ok(Vec::new()));
}

#[test]
fn an_answer_in_another_form_is_none() {
    let two = lines(&["set server b/s1 weight 1", "set server b/s2 state ready"]);
    for (case, text) in [
        ("no prompts", "\n\n\n\n"),
        // 3.2 to two commands on one line.
        ("one prompt for two", "\n> \n> \n\n> "),
        ("one too few", "\n> \n> \n> "),
        ("one too many", "\n> \n> \n> \n> \n> "),
        ("cut off", "\n> \n> \n> [3]: No such"),
        ("words behind the last", "\n> \n> \n> \n> bye"),
        (
            "the modes are not known",
            "Unknown command.\n> \n> \n> \n> ",
        ),
        ("words without a tag", "\n> \n> \n> No such server.\n\n> "),
        (
            "another prompt",
            "\nhaproxy> \nhaproxy> \nhaproxy> \nhaproxy> ",
        ),
        ("another program", "HTTP/1.0 400 Bad Request\r\n\r\n"),
    ] {
        let misfit = reply::of_lines(text, &two);
        assert!(misfit.is_err(), "{case}: {misfit:?}");
    }
    let words = reply::of_lines("\n> \n> \n> No such server.\n\n> ", &two).unwrap_err();
    assert_eq!(words.what, "`set server b/s2 state ready`");
}

/// Answers every connection with the same text.
fn answering(path: &Path, text: &'static str) -> tokio::task::JoinHandle<()> {
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut asked = [0; 4096];
            assert!(client.read(&mut asked).await.unwrap() > 0);
            client.write_all(text.as_bytes()).await.unwrap();
        }
    })
}

#[tokio::test]
async fn who_cannot_be_talked_to_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (known, unknown) = (folder.path().join("known"), folder.path().join("unknown"));
    let _server = answering(&known, "Name: HAProxy\nVersion: 9.1\nPid: 7\n\n");
    let error = RuntimeApi::new(vec![known.clone()])
        .info()
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot talk to this haproxy (HAProxy 9.1): stats socket `{}` answered 3 commands, one a line, with `Name: HAProxy\\nVersion: 9.1\\nPid: 7\\n\\n`",
            known.display()
        )
    );
    let _server = answering(&unknown, "220 ready\r\n");
    let error = RuntimeApi::new(vec![unknown]).info().await.unwrap_err();
    let told = error.to_string();
    assert!(
        told.starts_with("cannot talk to this haproxy: stats socket `"),
        "{told}"
    );
    assert!(told.ends_with("with `220 ready\\r\\n`"), "{told}");
}

const HEADER: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord\n";

fn row(op: u8, admin: u32, weight: u16, initial: u16) -> ServerRow {
    let text =
        format!("{HEADER}3 b 1 s1 ::1 {op} {admin} {weight} {initial} 1 1 0 2 0 0 0 0 - 80 -\n");
    ServerRow::parse_all(&text).unwrap().remove(0)
}

#[test]
fn table_is_read_by_column_name() {
    let row = row(2, 0, 5, 6);
    assert_eq!(
        (
            row.backend.as_str(),
            row.name.as_str(),
            row.id,
            row.weight,
            row.initial_weight
        ),
        ("b", "s1", 1, 5, 6)
    );
    assert_eq!(row.address.unwrap().to_string(), "[::1]:80");
    assert!(row.is_serving());
    assert_eq!(ServerRow::parse_all("1\n# be_id be_name\n"), Ok(Vec::new()));
    assert!(ServerRow::parse_all("Permission denied").is_err());
    assert!(ServerRow::parse_all(&format!("{HEADER}3 b one\n")).is_err());
}

#[test]
fn states_have_owners() {
    for (op, admin, theirs, ours) in [
        (2, 0, State::Ready, State::Ready),
        (0, 0, State::Ready, State::Ready),
        (0, 1, State::OperatorMaint, State::Retired),
        // `disabled` in the file; made ready later; in maint after that.
        (0, 5, State::OperatorMaint, State::Retired),
        (2, 4, State::Ready, State::Ready),
        (0, 4, State::Ready, State::Ready),
        (2, 8, State::OperatorDrain, State::OperatorDrain),
        // Tracks a server in maint.
        (0, 2, State::Ready, State::Ready),
    ] {
        // An agent and an operator can write any weight.
        for (weight, initial) in [(0, 0), (0, 1), (1, 1), (7, 1), (256, 256)] {
            let row = row(op, admin, weight, initial);
            let shown = format!("{op} {admin} {weight} {initial}");
            assert_eq!(row.state(false), theirs, "{shown}");
            assert_eq!(row.state(true), ours, "{shown}");
        }
    }
}

/// The weight goes out no later than the state, an agent is silenced before anything else and heard after all else but that.
#[test]
fn what_an_operation_sends() {
    use crate::outputs::haproxy::cfg::effective::Options;
    use crate::outputs::haproxy::plan::{Addition, Admit, Checks, Return};
    let add = |admit, options: &str| {
        let options = Options::of(options);
        Change::Add(Addition {
            address: "127.0.0.1:1".parse().unwrap(),
            id: 1,
            weight: 9,
            digest: options.digest(),
            options: std::sync::Arc::new(options),
            admit,
        })
    };
    let both = "check agent-check agent-port 1";
    let back = |weight| Return {
        weight,
        checks: Checks::of(&Options::of(both)),
    };
    let plain = Return {
        weight: Some(3),
        checks: Checks::of(&Options::default()),
    };
    let address = "127.0.0.2:2".parse().unwrap();
    let agent_on = "enable agent s; set server s agent up";
    for (change, sent) in [
        (
            add(Admit::Ready, ""),
            "add server s weight 9; set server s state ready".to_owned(),
        ),
        (
            add(Admit::Ready, both),
            format!("add server s weight 9; enable health s; {agent_on}; set server s state ready"),
        ),
        (
            add(Admit::Checked, both),
            "add server s weight 9; enable health s".to_owned(),
        ),
        (
            add(Admit::Disabled, both),
            format!("add server s weight 9; enable health s; {agent_on}"),
        ),
        (
            Change::Retire { agent: false },
            "set server s state maint; set server s weight 0".to_owned(),
        ),
        (
            Change::Retire { agent: true },
            "disable agent s; set server s state maint; set server s weight 0".to_owned(),
        ),
        (
            Change::Return(plain),
            "set server s weight 3; set server s state ready".to_owned(),
        ),
        (
            Change::Return(back(None)),
            format!(
                "enable health s; {agent_on}; set server s weight 100%; set server s state ready"
            ),
        ),
        (
            Change::Readdress {
                address,
                around: Some(back(None)),
                follows: crate::outputs::haproxy::cfg::effective::Follows::default(),
            },
            format!(
                "disable agent s; set server s state maint; set server s weight 0; set server s addr; enable health s; {agent_on}; set server s weight 100%; set server s state ready"
            ),
        ),
        // An agent takes another address only while it is listened to.
        (
            Change::Readdress {
                address,
                around: Some(back(None)),
                follows: crate::outputs::haproxy::cfg::effective::Follows {
                    health: true,
                    agent: true,
                },
            },
            format!(
                "disable agent s; set server s state maint; set server s weight 0; set server s check-addr 127.0.0.2; enable agent s; set server s agent-addr 127.0.0.2; set server s addr; enable health s; {agent_on}; set server s weight 100%; set server s state ready"
            ),
        ),
        (
            Change::Maint { agent: false },
            "set server s state maint".to_owned(),
        ),
        (
            Change::Maint { agent: true },
            "disable agent s; set server s state maint".to_owned(),
        ),
        (
            Change::Weight {
                weight: 4,
                queue: false,
            },
            "set server s weight 4".to_owned(),
        ),
        (
            Change::Weight {
                weight: 4,
                queue: true,
            },
            "set server s state maint; set server s weight 4; set server s state ready".to_owned(),
        ),
    ] {
        let op = Op {
            backend: "b".to_owned(),
            server: "s".to_owned(),
            change,
        };
        let texts = Command::of(&op).into_iter().map(|c| c.text().unwrap());
        let short = |text: String| {
            let text = text.replace("b/s", "s");
            let weight = text.split(' ').skip_while(|w| *w != "weight").nth(1);
            match text.split(' ').collect::<Vec<_>>()[..] {
                ["add", ..] => format!("add server s weight {}", weight.unwrap_or_default()),
                ["set", _, _, "addr", ..] => "set server s addr".to_owned(),
                _ => text,
            }
        };
        assert_eq!(
            texts.map(short).collect::<Vec<_>>().join("; "),
            sent,
            "{op}"
        );
    }
}

#[test]
fn what_a_check_says_of_a_server() {
    use crate::model::member::Evidence;
    for (op, check, result, evidence) in [
        (2, 6, 3, Evidence::Passing),
        // Not failed often enough yet.
        (2, 6, 2, Evidence::Passing),
        (0, 6, 2, Evidence::Failing),
        (2, 6, 0, Evidence::Pending),
        (2, 2, 3, Evidence::Nothing),
        // A check is under way.
        (2, 7, 0, Evidence::Awaited),
        (0, 7, 0, Evidence::Failing),
        // In maint.
        (0, 14, 3, Evidence::Pending),
        (0, 14, 2, Evidence::Failing),
        (0, 14, 0, Evidence::Pending),
    ] {
        let mut row = row(op, 0, 1, 1);
        (row.check, row.check_result) = (check, result);
        assert_eq!(row.evidence(), evidence, "{op} {check} {result}");
    }
}

#[tokio::test]
async fn absent_sockets_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s");
    assert!(matches!(
        RuntimeApi::new(vec![]).info().await,
        Err(ApiError::Unconfigured)
    ));
    let api = RuntimeApi::new(vec![path.clone()]);
    assert!(matches!(api.info().await, Err(ApiError::Missing(_))));
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let short = RuntimeApi::new(vec![path.clone()]).with_limit(Duration::from_millis(20));
    assert!(matches!(short.info().await, Err(ApiError::Timeout { .. })));
    drop(listener);
    assert!(matches!(api.info().await, Err(ApiError::Refused(_))));
}
