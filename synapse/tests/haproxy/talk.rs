//! The stats socket, the table, plans against it, and the check.

use std::net::SocketAddr;
use std::time::Duration;

use smartstack_common::admin::Bind;
use smartstack_common::testing::{App, eventually, get};
use synapse::config::Reload;
use synapse::config::keyword;
use synapse::outputs::haproxy::cfg::{FragmentMap, Model, Ours};
use synapse::outputs::haproxy::load::blame::{Frame, Outcome, Refused, Search, Selection, Step};
use synapse::outputs::haproxy::plan::{Change, Op, Plan, Running, State, garbage, plan};
use synapse::outputs::haproxy::process::{CheckError, Checker, Verdict};
use synapse::outputs::haproxy::socket::{AdminState, Command, Refusal, Reply, RuntimeApi};

use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::site::{Site, digests, server, taken_out};

fn runtime(plan: Plan) -> Vec<Op> {
    match plan {
        Plan::Runtime(ops) => ops,
        other => panic!("not at runtime: {other:?}"),
    }
}

#[tokio::test]
async fn what_was_loaded_reads_back_as_unchanged_and_plans_take() {
    let site = Site::new();
    let apps = [
        App::start("one").await,
        App::start("two").await,
        App::start("three").await,
    ];
    let lines = [
        server(1, apps[0].address, "weight 7 check cookie x"),
        server(
            2,
            apps[1].address,
            "agent-check agent-port 1 agent-inter 60s weight 9",
        ),
        server(3, apps[2].address, "disabled"),
        "server own 127.0.0.1:9 disabled".to_owned(),
    ];
    let all = site.write(&lines, "");
    let haproxy = site.started(Reload::Supervise, &all, 3).await;
    let known = digests(&all);
    let running = haproxy.live().await.unwrap().running(&known, taken_out);
    assert_eq!(plan(&running, &all), Plan::Unchanged);
    assert_eq!(running.backends["b"]["s3"].state, State::OperatorMaint);

    // Two leave, one changes its weight; the operator's own maint stays.
    let fewer = site.write(
        &[
            server(1, apps[0].address, "weight 5 check cookie x"),
            lines[3].clone(),
        ],
        "",
    );
    let ops = runtime(plan(&running, &fewer));
    assert_eq!(
        ops.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["weight b/s1 5", "retire b/s2"]
    );
    assert_eq!(haproxy.api().apply(&ops).await.unwrap(), [Ok(()), Ok(())]);
    let mut expected = running.clone();
    ops.iter().for_each(|op| expected.apply(op));
    let running = haproxy.live().await.unwrap().running(&known, taken_out);
    // Its table does not say what weight it was told.
    let told = expected.backends.get_mut("b").unwrap().values_mut();
    for (server, found) in told.zip(running.backends["b"].values()) {
        server.given = found.given;
    }
    assert_eq!(running, expected, "haproxy does what the model says");
    assert_eq!(plan(&running, &fewer), Plan::Unchanged);

    // They come back, and the agent's server with its initial weight.
    let all = site.write(&lines, "");
    let ops = runtime(plan(&running, &all));
    assert_eq!(
        ops.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["return b/s2", "weight b/s1 7"]
    );
    assert_eq!(haproxy.api().apply(&ops).await.unwrap(), [Ok(()), Ok(())]);
    let live = haproxy.live().await.unwrap();
    assert_eq!(
        plan(&live.running(&known, taken_out), &all),
        Plan::Unchanged
    );
    let row = live.table.iter().find(|r| r.name == "s2").unwrap();
    assert_eq!(
        (row.weight, row.initial_weight, row.is_serving()),
        (9, 9, true)
    );
}

#[tokio::test]
async fn an_operators_states_are_read_as_such() {
    let site = Site::new();
    let app = App::start("one").await;
    let desired = site.write(&[1, 2, 3].map(|n| server(n, app.address, "")), "");
    let haproxy = site.started(Reload::Supervise, &desired, 3).await;
    let set = |server: &str, state| Command::State {
        backend: "b".to_owned(),
        server: server.to_owned(),
        state,
    };
    let commands = [set("s1", AdminState::Maint), set("s2", AdminState::Drain)];
    assert_eq!(
        haproxy.api().run(&commands).await.unwrap(),
        [Reply::Done, Reply::Done]
    );
    let live = haproxy.live().await.unwrap();
    let states: Vec<State> = live.table.iter().map(|r| r.state(false)).collect();
    assert_eq!(
        states,
        [State::OperatorMaint, State::OperatorDrain, State::Ready]
    );
    assert_eq!(
        live.table
            .iter()
            .filter(|r| r.state(false) == State::OperatorMaint)
            .map(|r| r.name.as_str())
            .collect::<Vec<_>>(),
        ["s1"]
    );
    assert_eq!(
        plan(&live.running(&digests(&desired), taken_out), &desired),
        Plan::Unchanged
    );
}

/// A server whose name has another address: the checks that have its address written out go there with it, without a
/// reload, and the healthy server never goes down.
#[tokio::test]
async fn checks_at_the_servers_own_address_follow_it() {
    let site = Site::new();
    let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = there.local_addr().unwrap();
    let mut from = to;
    from.set_ip([127, 0, 0, 7].into());
    let here = TcpListener::bind(from).await.unwrap();
    let at = |address: SocketAddr| {
        let options = format!("check inter 100ms fall 1 addr {}", address.ip());
        // A connection that nothing is sent on is reset before anybody can accept it.
        let check = [
            "option tcp-check",
            "tcp-check connect",
            "tcp-check send PING",
        ];
        let check = check.map(str::to_owned);
        site.write(&[&check[..], &[server(1, address, &options)]].concat(), "")
    };
    let before = at(from);
    let haproxy = site.started(Reload::Supervise, &before, 1).await;
    let checked = async |listener: &TcpListener| {
        for _ in 0..3 {
            let accepted = timeout(Duration::from_secs(30), listener.accept()).await;
            drop(accepted.expect("haproxy checks the server there"));
        }
    };
    checked(&here).await;
    // There, and back.
    for (former, now, listener) in [(from, to, &there), (to, from, &here)] {
        let running = haproxy
            .live()
            .await
            .unwrap()
            .running(&digests(&at(former)), taken_out);
        let after = at(now);
        let ops = runtime(plan(&running, &after));
        assert_eq!(
            ops.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [format!("readdress b/s1 {now}")]
        );
        assert_eq!(haproxy.api().apply(&ops).await.unwrap(), [Ok(())]);
        checked(listener).await;
        let live = haproxy.live().await.unwrap();
        assert_eq!(
            plan(&live.running(&digests(&after), taken_out), &after),
            Plan::Unchanged
        );
        assert_eq!(live.table[0].op_state, 2, "up: {:?}", live.table[0]);
    }
}

/// Every row of the reply table that can be provoked, in haproxy's own words.
#[tokio::test]
async fn refusals_are_recognised() {
    let site = Site::new();
    let app = App::start("one").await;
    let hashed = format!(
        "backend h\n\tbalance source\n\tserver t {} track b/s1\n",
        app.address
    );
    let desired = site.write(
        &[server(1, app.address, "check"), server(2, app.address, "")],
        &hashed,
    );
    let haproxy = site.started(Reload::Supervise, &desired, 3).await;
    for (command, refusal) in [
        ("add server b/s1 127.0.0.1:9", Refusal::AlreadyExists),
        ("add server b/x 127.0.0.1:9 id 1", Refusal::IdUsed),
        ("add server h/x 127.0.0.1:9", Refusal::NotDynamic),
        ("add server nope/x 127.0.0.1:9", Refusal::NoSuchBackend),
        ("set server nope/x state maint", Refusal::NoSuchBackend),
        ("set server b/nope state maint", Refusal::NoSuchServer),
        ("del server b/nope", Refusal::NoSuchServer),
        ("del server b/s2", Refusal::NotInMaint),
        (
            "set server b/s1 state maint;del server b/s1",
            Refusal::PointedTo,
        ),
    ] {
        let text = site
            .real()
            .command(&format!("set severity-output number;{command}"))
            .await;
        assert_eq!(
            Reply::parse(&text),
            Reply::Refused(refusal),
            "{command}: {text}"
        );
    }
    for command in [
        "add server b/x 127.0.0.1:9 cookie v",
        "add server b/x 127.0.0.1:9 nope",
    ] {
        let text = site
            .real()
            .command(&format!("set severity-output number;{command}"))
            .await;
        assert!(
            matches!(Reply::parse(&text), Reply::Refused(Refusal::NotAccepted(_))),
            "{command}: {text}"
        );
    }
    // In one batch each reply stays with its command.
    let op = |server: &str, change| Op {
        backend: "b".to_owned(),
        server: server.to_owned(),
        change,
    };
    let ops = [
        op("s1", Change::Retire { agent: false }),
        op("nope", Change::Retire { agent: false }),
        op(
            "s2",
            Change::Weight {
                weight: 3,
                queue: false,
            },
        ),
    ];
    assert_eq!(
        haproxy.api().apply(&ops).await.unwrap(),
        [Ok(()), Err(Refusal::NoSuchServer), Ok(())]
    );
    // What must not be sent costs itself alone.
    let bad = [
        op("s1;disable frontend f", Change::Retire { agent: false }),
        op(
            "s2",
            Change::Weight {
                weight: 4,
                queue: false,
            },
        ),
    ];
    let results = haproxy.api().apply(&bad).await.unwrap();
    assert!(
        matches!(results[..], [Err(Refusal::Unsendable(_)), Ok(())]),
        "{results:?}"
    );
    assert_eq!(haproxy.api().servers(Some("nope")).await.unwrap(), []);
    assert_eq!(haproxy.api().servers(Some("b")).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_socket_below_admin_is_told() {
    let site = Site::new();
    let user = site.dir.join("user.sock");
    let desired = site.write(
        &[],
        &format!("global\n\tstats socket {} level user\n", user.display()),
    );
    let _haproxy = site.started(Reload::Supervise, &desired, 0).await;
    let api = RuntimeApi::new(vec![user]);
    let op = Op {
        backend: "b".to_owned(),
        server: "s".to_owned(),
        change: Change::Retire { agent: false },
    };
    assert_eq!(api.apply(&[op]).await.unwrap(), [Err(Refusal::Denied)]);
}

/// Added over the socket, read back, deleted: what the model says is what haproxy does, in every form of address.
#[tokio::test]
async fn servers_are_added_as_planned_and_deleted() {
    let site = Site::new();
    let apps = [
        App::start("one").await,
        App::start("two").await,
        App::start("three").await,
    ];
    let none = site.write(&[], "");
    let haproxy = site.started(Reload::Supervise, &none, 0).await;
    let pid = haproxy.live().await.unwrap().pid;
    let lines = [
        server(
            1,
            apps[0].address,
            "check inter 1s rise 2 fall 3 weight 7 cookie x",
        ),
        server(
            2,
            apps[1].address,
            "agent-check agent-port 1 agent-inter 60s weight 9 maxconn 40 backup",
        ),
        server(
            3,
            apps[2].address,
            "disabled weight 4 slowstart 2s pool-purge-delay 9s",
        ),
        "server s4 [::1]:9 id 4 send-proxy ssl verify none sni str(x) alpn h2".to_owned(),
    ];
    let all = site.write(&lines, "");
    let running = haproxy
        .live()
        .await
        .unwrap()
        .running(&digests(&all), taken_out);
    let ops = runtime(plan(&running, &all));
    assert_eq!(ops.len(), 4);
    let results = haproxy.api().apply(&ops).await.unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let running = haproxy
        .live()
        .await
        .unwrap()
        .running(&digests(&all), taken_out);
    assert_eq!(plan(&running, &all), Plan::Unchanged, "{running:#?}");
    assert_eq!(running.backends["b"]["s3"].state, State::OperatorMaint);
    let mut expected = Running::loaded(&all);
    expected.backends.retain(|name, _| name == "b");
    for (name, server) in expected.backends.get_mut("b").unwrap() {
        // A server that its line does not keep out is added with weight 0, until all its commands are taken.
        server.initial_weight = running.backends["b"][name].initial_weight;
    }
    assert_eq!(running, expected);
    let reply = get(&Bind::Tcp(site.address().to_string()), "/")
        .await
        .unwrap();
    assert_eq!(reply.body.trim(), "one");

    // Half-way: it reads as taken out by us, and returns.
    let half = "add server b/s5 127.0.0.1:9 id 5 weight 0";
    assert_eq!(
        site.real().command(half).await.trim(),
        "New server registered."
    );
    let mut with_half = lines.to_vec();
    with_half.push("server s5 127.0.0.1:9 id 5".to_owned());
    let wanted = site.write(&with_half, "");
    let running = haproxy
        .live()
        .await
        .unwrap()
        .running(&digests(&wanted), taken_out);
    let ops = runtime(plan(&running, &wanted));
    assert_eq!(ops[0].to_string(), "return b/s5 weight 1");
    assert_eq!(haproxy.api().apply(&ops).await.unwrap(), [Ok(())]);
    // One that is there already is left as it is.
    let again = [Op {
        backend: "b".to_owned(),
        server: "s3".to_owned(),
        change: runtime(plan(&Running::loaded(&none), &all))
            .remove(0)
            .change,
    }];
    // Its id is looked at first.
    assert_eq!(
        haproxy.api().apply(&again).await.unwrap(),
        [Err(Refusal::IdUsed)]
    );
    let running = haproxy
        .live()
        .await
        .unwrap()
        .running(&digests(&wanted), taken_out);
    assert_eq!(plan(&running, &wanted), Plan::Unchanged);

    let ops = runtime(plan(&running, &none));
    assert!(
        haproxy
            .api()
            .apply(&ops)
            .await
            .unwrap()
            .iter()
            .all(Result::is_ok)
    );
    let running = haproxy
        .live()
        .await
        .unwrap()
        .running(&digests(&wanted), taken_out);
    let ops = garbage(&running, &none, none.backends.keys());
    // The operator's stays.
    assert_eq!(ops.len(), 4);
    eventually(
        "they are deleted",
        std::time::Duration::from_secs(20),
        async || {
            let results = haproxy.api().apply(&ops).await.unwrap();
            let gone = |r: &Result<(), Refusal>| matches!(r, Ok(()) | Err(Refusal::NoSuchServer));
            if results.iter().all(gone) {
                Ok(())
            } else {
                Err(format!("{results:?}"))
            }
        },
    )
    .await;
    assert_eq!(haproxy.live().await.unwrap().table.len(), 1);
    assert_eq!(haproxy.live().await.unwrap().pid, pid);
}

/// A batch longer than a line of haproxy's, over a table longer than a pipe.
#[tokio::test]
async fn thousands_of_changes_go_through() {
    let site = Site::new();
    let lines: Vec<String> = (1..=3_000)
        .map(|n| format!("server s{n} 127.0.0.1:9 id {n}"))
        .collect();
    let desired = site.write(&lines, "");
    let mut haproxy = site.haproxy(Reload::Supervise);
    assert!(
        haproxy
            .start(Some(&desired.generation), lines.len())
            .await
            .succeeded()
    );
    let known = digests(&desired);
    let running = haproxy.live().await.unwrap().running(&known, taken_out);
    let one = site.write(&lines[..1], "");
    let ops = runtime(plan(&running, &one));
    assert_eq!(ops.len(), 2_999);
    assert!(
        haproxy
            .api()
            .apply(&ops)
            .await
            .unwrap()
            .iter()
            .all(Result::is_ok)
    );
    assert_eq!(
        plan(
            &haproxy.live().await.unwrap().running(&known, taken_out),
            &one
        ),
        Plan::Unchanged
    );
}

#[tokio::test]
async fn verdicts() {
    let site = Site::new();
    let haproxy = site.haproxy(Reload::Never);
    site.write(&[], "");
    assert_eq!(haproxy.check(&site.config).await.unwrap(), Verdict::Valid);
    let empty = site.dir.write("empty.cfg", "global\n\tmaxconn 10\n");
    assert_eq!(haproxy.check(&empty).await.unwrap(), Verdict::NoListener);

    let frame = "global\n\tmaxconn 10\nfrontend f\n\tmode http\n\tbind 127.0.0.1:1\n";
    let first = "backend a\n\tmode http\n\tserver s1 127.0.0.1:1 weight 300\n";
    let second = "backend c\n\tmode http\n\toption nope\n";
    let broken = site
        .dir
        .write("broken.cfg", format!("{frame}{first}{second}"));
    let Verdict::Refused(complaints) = haproxy.check(&broken).await.unwrap() else {
        panic!("accepted");
    };
    let models = [frame, first, second].map(|text| Model::parse(text, Ours::All));
    let models: Vec<&Model> = models.iter().collect();
    let map = FragmentMap::new(models.iter().map(|m| m.lines));
    let blamed = complaints.blamed(&map, &models);
    assert_eq!(
        blamed.keys().collect::<Vec<_>>(),
        [&1, &2],
        "{complaints:?}"
    );
    assert!(complaints.servers(&map, &models)[&("a".to_owned(), "s1".to_owned())].contains("300"));
}

/// The frame and two of the services are bad; everything else gets through.
#[tokio::test]
async fn quarantine_leaves_only_the_bad_ones_out() {
    let site = Site::new();
    let haproxy = site.haproxy(Reload::Never);
    let frame = |timeout: &str| format!("defaults\n\tmode http\n\ttimeout client {timeout}\n");
    let service = |n: usize, line: &str| {
        format!(
            "frontend f{n}\n\tbind 127.0.0.1:{n}\n\tdefault_backend b{n}\nbackend b{n}\n\t{line}\n"
        )
    };
    let lines = |n: usize| match n {
        // Known by line, and by name only.
        4 => "option nope",
        7 => "use-server s if nonsense",
        9 => "http-request set-var(x) str(1)",
        _ => "balance roundrobin",
    };
    let old: Vec<String> = std::iter::once(frame("1s"))
        .chain((1..=12).map(|n| service(n, "")))
        .collect();
    let new: Vec<String> = std::iter::once(frame("soon"))
        .chain((1..=12).map(|n| service(n, lines(n))))
        .collect();
    let mut checks = 0;
    let mut check = async |selection: &Selection| {
        checks += 1;
        let texts: Vec<&str> = (0..13)
            .map(|n| {
                if selection.contains(&n) {
                    &new[n]
                } else {
                    &old[n]
                }
                .as_str()
            })
            .collect();
        let path = site.dir.write("candidate.cfg", texts.concat());
        match haproxy.check(&path).await.unwrap() {
            Verdict::Refused(complaints) => {
                let models: Vec<Model> = texts
                    .iter()
                    .map(|text| Model::parse(text, Ours::All))
                    .collect();
                let map = FragmentMap::new(models.iter().map(|m| m.lines));
                let blamed = complaints.blamed(&map, &models.iter().collect::<Vec<_>>());
                Err(Refused {
                    blamed,
                    words: complaints.summary(),
                })
            }
            _ => Ok(()),
        }
    };
    let all: Selection = (0..13).collect();
    let refused = check(&all).await.unwrap_err();
    let mut search = Search::new(all, Frame::Changed(0), refused);
    let (new, bad) = loop {
        match search.step() {
            Step::Try(selection) => search.feed(check(&selection).await),
            Step::Done(Outcome::Accepted { new, bad }) => break (new, bad),
            Step::Done(Outcome::Nothing { words }) => panic!("{words}"),
        }
    };
    assert_eq!(new, [1, 2, 3, 5, 6, 8, 10, 11, 12].into(), "{bad:?}");
    assert!(
        bad[&0].contains("timer format") || bad[&0].contains("timeout"),
        "{bad:?}"
    );
    assert!(bad[&4].contains("unknown option 'nope'"), "{bad:?}");
    assert!(checks <= 4, "{checks} checks");
}

#[tokio::test]
async fn a_check_command_replaces_the_check() {
    let limit = std::time::Duration::from_secs(10);
    let path = std::path::Path::new("/dev/null");
    assert_eq!(
        Checker::Command("exit 0".to_owned())
            .check(path, limit)
            .await
            .unwrap(),
        Verdict::Valid
    );
    let refused = Checker::Command("echo no; exit 2".to_owned())
        .check(path, limit)
        .await
        .unwrap();
    assert!(matches!(refused, Verdict::Refused(c) if c.summary() == "no"));
    let missing = Checker::Command("/no/such/program".to_owned())
        .check(path, limit)
        .await;
    assert!(matches!(missing, Err(CheckError::Ended { .. })));
    let missing = Checker::Binary("/no/such/haproxy".to_owned())
        .check(path, limit)
        .await;
    assert!(matches!(missing, Err(CheckError::NotFound(_))));
}

/// The word after a keyword and its arguments is read as a keyword: haproxy must call it unknown.
#[tokio::test]
async fn the_keyword_table_counts_arguments_as_haproxy_does() {
    let site = Site::new();
    let value = |keyword: &str| match keyword {
        "addr" | "agent-addr" => "127.0.0.1",
        "source" | "socks4" => "127.0.0.1:1",
        "on-marked-down" => "shutdown-sessions",
        "on-marked-up" => "shutdown-backup-sessions",
        "on-error" => "mark-down",
        "observe" => "layer4",
        "track" => "b/s",
        "verify" => "none",
        "ssl-min-ver" | "ssl-max-ver" => "TLSv1.2",
        "proto" | "check-proto" => "h2",
        "resolve-prefer" => "ipv4",
        "resolve-opts" => "allow-dup-ip",
        "resolve-net" => "10.0.0.0/8",
        "proxy-v2-options" => "ssl",
        "log-proto" => "legacy",
        "init-addr" => "none",
        "ws" => "auto",
        "npn" | "alpn" | "check-alpn" => "h2",
        "sni" | "check-sni" => "x",
        _ => "1",
    };
    // `usesrc` and `interface` only follow `source`.
    let keywords: Vec<&str> = keyword::all()
        .filter(|k| !matches!(*k, "usesrc" | "interface"))
        .collect();
    let mut counted = 0;
    // haproxy stops reading after 50 errors.
    for (chunk, keywords) in keywords.chunks(40).enumerate() {
        let mut text =
            "frontend f\n bind 127.0.0.1:1\n mode http\nbackend b\n mode http\n".to_owned();
        let first = text.lines().count() + 1;
        for (index, keyword) in keywords.iter().enumerate() {
            let arguments = vec![value(keyword); keyword::arity(keyword).unwrap()].join(" ");
            text += &format!(" server s{index} 127.0.0.1:1 {keyword} {arguments} zzz\n");
        }
        let path = site.dir.write(&format!("keywords{chunk}.cfg"), text);
        let limit = std::time::Duration::from_secs(20);
        let verdict = Checker::Binary("haproxy".to_owned())
            .check(&path, limit)
            .await
            .unwrap();
        let Verdict::Refused(complaints) = verdict else {
            panic!("accepted");
        };
        for (index, keyword) in keywords.iter().enumerate() {
            let at = complaints
                .alerts
                .iter()
                .filter(|a| a.line == Some(first + index));
            let words: Vec<&str> = at.map(|a| a.words.as_str()).collect();
            let says = |text: &str| words.iter().any(|w| w.contains(text));
            if says("unknown keyword 'zzz'") {
                counted += 1;
                continue;
            }
            // Of another version, or a value refused before the next word was read.
            let foreign = says(&format!("unknown keyword '{keyword}'"));
            let is_flag = keyword::arity(keyword) == Some(0);
            let refused = !is_flag
                && !words.is_empty()
                && !says(&format!("unknown keyword '{}'", value(keyword)));
            assert!(foreign || refused, "{keyword}: {words:?}");
        }
    }
    assert!(
        counted > 75,
        "only {counted} of {} could be counted",
        keyword::all().count()
    );
}
