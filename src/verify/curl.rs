//! Many HTTPS requests from one `curl` process, and their replies told apart again.
//! `script` writes the command line, judges read the replies; starting a process is what a probe pays for, so one does it all.
//! It knows no URL: which server is asked for what is the caller's.

use crate::guest::quote;
use crate::said::one_line;
use std::collections::BTreeMap;

/// One request; `body` makes it a POST.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Names the reply; no spaces.
    pub name: String,
    pub url: String,
    pub body: Option<String>,
}

impl Request {
    pub fn get(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self { name: name.into(), url: url.into(), body: None }
    }
    pub fn post(name: impl Into<String>, url: impl Into<String>, body: impl Into<String>) -> Self {
        Self { name: name.into(), url: url.into(), body: Some(body.into()) }
    }
}

/// Files on the node: whom to trust and, for mutual TLS, who we are (certificate, key).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    pub ca: String,
    pub client: Option<(String, String)>,
}

/// How the requests of one process are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// All at once; the bodies are thrown away.
    Parallel,
    /// One after the other on one connection; ends at the first that gets no HTTP answer.
    UntilSilence,
    /// One after the other, all of them whatever happens.
    All,
}

/// Seconds until a connection, and until an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    pub connect_s: u32,
    pub answer_s: u32,
}

/// The command, quoted for the shell. Replies are framed with `token`.
pub fn command(requests: &[Request], tls: &Tls, patience: Patience, order: Order, token: &str) -> String {
    let mut line = "curl -q --no-progress-meter".to_owned();
    match order {
        Order::Parallel => line.push_str(" --parallel --parallel-immediate"),
        Order::UntilSilence => line.push_str(" --fail-early"),
        Order::All => {}
    }
    for (i, request) in requests.iter().enumerate() {
        if i > 0 {
            line.push_str(" --next");
        }
        // `--next` forgets everything said before it.
        line.push_str(" -s --http1.1 -A ktcw-verify");
        let mut option = |name: &str, value: &str| {
            line.push(' ');
            line.push_str(name);
            line.push(' ');
            line.push_str(&quote(value));
        };
        option("--cacert", &tls.ca);
        if let Some((cert, key)) = &tls.client {
            option("--cert", cert);
            option("--key", key);
        }
        option("--connect-timeout", &patience.connect_s.to_string());
        option("--max-time", &patience.answer_s.to_string());
        option("-w", &format!("\\n={token}= {} %{{http_code}} %{{exitcode}} %{{time_total}} %{{errormsg}}\\n", request.name));
        if let Some(body) = &request.body {
            option("-d", body);
        }
        if order == Order::Parallel {
            option("-o", "/dev/null");
        }
        option("--url", &request.url);
    }
    line
}

/// What one request came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// HTTP status, 0 without one.
    pub status: u16,
    /// curl's exit status for this request, 0 when an answer came.
    pub exit: u32,
    pub seconds: f64,
    /// curl's message when `exit` is not 0.
    pub error: String,
    pub body: String,
}

impl Reply {
    /// The body of a 200, or what there was instead.
    pub fn ok(&self) -> Result<&str, String> {
        match (self.exit, self.status) {
            (0, 200) => Ok(&self.body),
            (0, status) => Err(match message(&self.body) {
                Some(said) => format!("HTTP {status}: {said}"),
                None => format!("HTTP {status}"),
            }),
            (exit, _) if self.error.is_empty() => Err(format!("curl ended with {exit} after {:.1} s", self.seconds)),
            (_, _) => Err(format!("{} (after {:.1} s)", one_line(&self.error), self.seconds)),
        }
    }
}

/// The `message` that both etcd's gateway and the Kubernetes API put into an error's JSON, or its plain text.
fn message(body: &str) -> Option<String> {
    let json: Option<serde_json::Value> = serde_json::from_str(body).ok();
    let said = match json.as_ref().and_then(|json| json.get("message").or_else(|| json.get("error"))?.as_str()) {
        Some(said) => said,
        None => body,
    };
    Some(one_line(said)).filter(|said| !said.is_empty())
}

/// Replies by name. One that came twice, or whose frame does not parse, is not here.
pub fn replies(output: &str, token: &str) -> BTreeMap<String, Reply> {
    let mark = format!("={token}= ");
    let mut all = BTreeMap::new();
    let mut doubled = Vec::new();
    let mut body = String::new();
    for line in output.split_inclusive('\n') {
        let Some(frame) = line.strip_suffix('\n').unwrap_or(line).strip_prefix(&mark) else {
            body.push_str(line);
            continue;
        };
        let body = std::mem::take(&mut body);
        let mut words = frame.splitn(5, ' ');
        let (Some(name), Some(Ok(status)), Some(Ok(exit)), Some(Ok(seconds))) = (
            words.next(),
            words.next().map(str::parse::<u16>),
            words.next().map(str::parse::<u32>),
            words.next().map(str::parse::<f64>),
        ) else {
            continue;
        };
        let error = words.next().unwrap_or_default().trim().to_owned();
        let body = body.strip_suffix('\n').unwrap_or(&body).to_owned();
        if all.insert(name.to_owned(), Reply { status, exit, seconds, error, body }).is_some() {
            doubled.push(name.to_owned());
        }
    }
    for name in doubled {
        all.remove(&name);
    }
    all
}

/// One reply's body, or why there is none: after a request that got no answer, curl may have asked no further.
pub fn body<'a>(replies: &'a BTreeMap<String, Reply>, name: &str) -> Result<&'a str, String> {
    match (replies.get(name), replies.values().find(|reply| reply.exit != 0).map(Reply::ok)) {
        (Some(reply), _) => reply.ok(),
        (None, Some(Err(why))) => Err(format!("no reply to {name}: {why}")),
        (None, _) => Err(format!("no reply to {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_told_apart_and_errors_speak() {
        let output = "{\"a\":\n1}\n=t= one 200 0 0.012 \n\n=t= two 0 7 2.001 Failed to connect to 192.0.2.1 port 6443 after 1 ms\n\
                      {\"error\":\"x\",\"code\":14,\"message\":\"etcdserver: request timed out\"}\n=t= three 503 0 7.0 \n\
                      \n=t= four two 0 0 \n\n=t= five 500 0 0.1 \n";
        let all = replies(output, "t");
        assert_eq!(body(&all, "one"), Ok("{\"a\":\n1}"));
        assert_eq!(body(&all, "two"), Err("Failed to connect to 192.0.2.1 port 6443 after 1 ms (after 2.0 s)".to_owned()));
        assert_eq!(body(&all, "three"), Err("HTTP 503: etcdserver: request timed out".to_owned()));
        // Its frame does not parse: it was not asked, for all we know, because the one before it got no answer.
        assert_eq!(
            body(&all, "four"),
            Err("no reply to four: Failed to connect to 192.0.2.1 port 6443 after 1 ms (after 2.0 s)".to_owned())
        );
        assert_eq!(body(&replies("", "t"), "four"), Err("no reply to four".to_owned()));
        assert_eq!(body(&all, "five"), Err("HTTP 500".to_owned()));
    }

    #[test]
    fn a_reply_that_came_twice_is_none() {
        assert_eq!(replies("\n=t= a 200 0 0.1 \n\n=t= a 500 0 0.1 \n", "t"), BTreeMap::new());
    }

    #[test]
    fn each_request_carries_its_own_trust() {
        let requests =
            [Request::get("a", "https://192.0.2.1/x?a=b&c"), Request::post("b", "https://192.0.2.2/", "{\"k\": \"it's\"}")];
        let tls = Tls { ca: "/ca.pem".to_owned(), client: Some(("/c.pem".to_owned(), "/k.pem".to_owned())) };
        let line = command(&requests, &tls, Patience { connect_s: 2, answer_s: 5 }, Order::All, "t");
        assert_eq!(line.matches("--cacert /ca.pem --cert /c.pem --key /k.pem").count(), 2);
        assert!(line.contains("'https://192.0.2.1/x?a=b&c'") && line.contains(r#"-d '{"k": "it'\''s"}'"#), "{line}");
    }
}
