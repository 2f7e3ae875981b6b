//! Names of hosts, asked of the system's resolver anew for each attempt, at most one question for a name at a time.
//!
//! A question to the resolver is a thread that nothing can end, for as long as its name servers are silent (10 s and more).
//! Attempts come much faster; so who asks for a name that is being asked for waits for that answer, and a resolver that hangs
//! costs one thread for each name and not one for each attempt.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::outcome::{Outcome, local};

/// Addresses with port 0, or what is to be said of the check.
type Answer = Result<Vec<SocketAddr>, Outcome>;

type Questions = BTreeMap<String, watch::Receiver<Option<Answer>>>;

/// The names that are being asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names(Arc<Mutex<Questions>>);

impl Names {
    /// The addresses of a name or literal.
    pub(super) async fn addresses(&self, host: &str) -> Answer {
        if let Ok(literal) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(literal, 0)]);
        }
        let mut question = self.question(host);
        let answer = question.wait_for(Option::is_some).await;
        let answer = answer.ok().and_then(|answer| answer.clone());
        // Only the end of the program ends a question without an answer.
        answer.unwrap_or_else(|| Err(Outcome::NotRun(format!("`{host}` is not asked for"))))
    }

    fn question(&self, host: &str) -> watch::Receiver<Option<Answer>> {
        let mut questions = self.questions();
        if let Some(question) = questions.get(host) {
            return question.clone();
        }
        let (sender, question) = watch::channel(None);
        questions.insert(host.to_owned(), question.clone());
        let (names, host) = (self.clone(), host.to_owned());
        tokio::spawn(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await;
            let answer = found
                .map(Iterator::collect)
                .map_err(|error| unresolved(&host, &error));
            names.questions().remove(&host);
            sender.send_replace(Some(answer));
        });
        question
    }

    fn questions(&self) -> MutexGuard<'_, Questions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That there is no such name is an answer, about the configuration or the app; everything else is the resolver's trouble.
fn unresolved(host: &str, error: &io::Error) -> Outcome {
    // As glibc and musl say it; neither the number nor a kind comes through.
    let answers = [
        "Name or service not known",
        "No address associated with hostname",
        "Name does not resolve",
        "Name has no usable address",
    ];
    let said = error.to_string();
    if answers.iter().any(|answer| said.ends_with(answer)) {
        return Outcome::Fail(format!("cannot resolve `{host}`: {said}"));
    }
    let said = local(error).map_or(said, str::to_owned);
    Outcome::NotRun(format!("the resolver has no answer for `{host}`: {said}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_question_for_a_name_at_a_time() {
        let names = Names::default();
        let both = tokio::join!(names.addresses("localhost"), names.addresses("localhost"));
        let addresses = both.0.unwrap();
        assert!(addresses.iter().all(|address| address.ip().is_loopback()));
        assert_eq!(both.1.unwrap(), addresses);
        assert!(names.questions().is_empty());
        let first = names.question("localhost");
        assert!(names.question("localhost").same_channel(&first));
        assert!(!names.question("ip6-localhost").same_channel(&first));
        assert!(names.addresses("127.0.0.1").await.is_ok(), "no question");
    }

    #[test]
    fn no_such_name_is_an_answer_and_anything_else_is_the_resolvers_trouble() {
        let said = |text: &str| {
            let text = format!("failed to lookup address information: {text}");
            unresolved("db", &io::Error::other(text))
        };
        for text in [
            "Name or service not known",
            "No address associated with hostname",
            "Name does not resolve",
        ] {
            assert!(matches!(said(text), Outcome::Fail(_)), "{text}");
        }
        for text in [
            "Temporary failure in name resolution",
            "Non-recoverable failure in name resolution",
            "Try again",
            "Memory allocation failure",
        ] {
            assert!(matches!(said(text), Outcome::NotRun(_)), "{text}");
        }
        let full = io::Error::from_raw_os_error(24);
        let Outcome::NotRun(reason) = unresolved("db", &full) else {
            panic!("an answer")
        };
        assert!(reason.contains("descriptor"), "{reason}");
    }
}
