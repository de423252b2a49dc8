//! Takes secrets out of text: those of the cluster's directory in whatever encoding, also in pieces, and what looks like one.
//! `support` passes everything through it that leaves this computer.
//! It rather takes out too much than too little, and knows nothing of where a text came from.

use crate::secret::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use std::collections::HashSet;

/// What stands in its place.
pub const REDACTED: &str = "<redacted>";
/// So many characters of a secret in a row give it away; fewer are no use to anybody.
const PIECE: usize = 16;

/// Knows the secrets by all pieces of all their encodings.
pub struct Redactor {
    pieces: HashSet<[u8; PIECE]>,
}

impl Redactor {
    pub fn new(secrets: &[Secret]) -> Redactor {
        let mut pieces = HashSet::new();
        for secret in secrets {
            for text in encodings(secret.expose()) {
                for token in text.split(|byte| !in_token(*byte)) {
                    pieces.extend(token.windows(PIECE).filter_map(|piece| <[u8; PIECE]>::try_from(piece).ok()));
                }
            }
        }
        Redactor { pieces }
    }

    /// The text without them.
    pub fn text(&self, text: &str) -> String {
        let text = without_pem(text);
        let mut out = String::with_capacity(text.len());
        let mut after = After::Nothing;
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let end = rest.bytes().position(|byte| !in_token(byte)).unwrap_or(rest.len());
            let (token, tail) = rest.split_at(end);
            if token.is_empty() {
                let gap = tail.chars().take_while(|c| !(c.is_ascii() && in_token(*c as u8))).map(char::len_utf8).sum();
                let (between, tail) = tail.split_at(gap);
                after = after.across(between);
                out.push_str(between);
                rest = tail;
                continue;
            }
            rest = tail;
            // A sign of assignment with room around it says nothing by itself.
            if token.bytes().all(|byte| byte == b'=') && after != After::JwtPart {
                after = after.assigned();
                out.push_str(token);
                continue;
            }
            let part = after == After::JwtPart;
            match assigned_secret(token) {
                _ if after == After::SecretsName => {
                    let quoted = out.chars().next_back().filter(|c| QUOTES.contains(c));
                    out.push_str(REDACTED);
                    rest = behind_value(tail, quoted);
                }
                _ if part || self.knows(token) || is_jwt(token) && tail.starts_with('.') => out.push_str(REDACTED),
                Some((name, _)) => {
                    out.push_str(name);
                    out.push_str(REDACTED);
                    rest = behind_value(tail, None);
                }
                None => out.push_str(token),
            }
            // `Basic` and `Bearer` stand before what they say how to read.
            let value = if after == After::SecretsName { Some(token) } else { assigned_secret(token).map(|(_, value)| value) };
            after = match value {
                _ if part => After::Jwt,
                Some(value) if SCHEMES.iter().any(|scheme| scheme.eq_ignore_ascii_case(value)) => After::SecretsWord,
                _ => After::word(token),
            };
        }
        out
    }

    fn knows(&self, token: &str) -> bool {
        token.as_bytes().windows(PIECE).any(|piece| self.pieces.contains(piece))
    }
}

/// Characters of base64 in both alphabets, of hex, of JWTs between their points, and of text escaped for a URL.
fn in_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/=_-%".contains(&byte)
}

/// A secret as it may be met: as it is; in base64 at all three alignments, for it may stand inside of a longer text that was
/// encoded as a whole; the bytes inside of PEM in hex and base64 of any alignment; and what is quoted inside of YAML likewise.
fn encodings(secret: &str) -> Vec<Vec<u8>> {
    let mut raw: Vec<Vec<u8>> = vec![secret.as_bytes().to_vec()];
    let body: String = secret.lines().filter(|line| !line.contains("-----")).map(str::trim).collect();
    if secret.contains("-----BEGIN") {
        raw.push(body.clone().into_bytes());
        raw.extend(STANDARD.decode(&body).ok());
    } else {
        // Long words of a kubeconfig or an encryption configuration: PEM in base64 in YAML.
        for word in secret.split(|c: char| !(c.is_ascii() && in_token(c as u8))).filter(|word| word.len() >= PIECE) {
            if let Ok(inner) = STANDARD.decode(word) {
                let text = String::from_utf8_lossy(&inner).into_owned();
                if text.contains("PRIVATE KEY") {
                    raw.extend(encodings(&text));
                }
                raw.push(inner);
            }
        }
    }
    let mut all = Vec::new();
    for bytes in raw {
        for shift in 0..3 {
            let mut shifted = vec![0; shift];
            shifted.extend_from_slice(&bytes);
            // What depends on the bytes before and after is left out.
            for text in [STANDARD_NO_PAD.encode(&shifted), URL_SAFE_NO_PAD.encode(&shifted)] {
                let inner = text.get(shift.div_ceil(3) * 4..text.len().saturating_sub(2)).unwrap_or_default();
                all.push(inner.as_bytes().to_vec());
            }
        }
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        all.push(hex.to_uppercase().into_bytes());
        all.push(hex.into_bytes());
        all.push(bytes);
    }
    all
}

/// Everything between the lines that frame a private key, whoever's it is.
fn without_pem(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find("-----BEGIN ") {
        let (before, from) = rest.split_at(begin);
        let Some(label_end) = from["-----BEGIN ".len()..].find("-----").map(|at| at + "-----BEGIN ".len()) else { break };
        let private = from[..label_end].contains("PRIVATE KEY");
        // Only where it is wanted: a text of nothing but beginnings would be gone through for each of them.
        let end = if private { from.find("-----END ") } else { None };
        out.push_str(before);
        rest = match (private, end) {
            (false, _) => {
                out.push_str(&from[..label_end]);
                &from[label_end..]
            }
            // Without an end the rest of the text is taken for it.
            (true, None) => {
                out.push_str(REDACTED);
                ""
            }
            (true, Some(end)) => {
                out.push_str(REDACTED);
                let tail = &from[end + "-----END ".len()..];
                tail.find("-----").map_or("", |at| &tail[at + 5..])
            }
        };
    }
    out.push_str(rest);
    out
}

/// Room within a line.
fn in_line(c: char) -> bool {
    c == ' ' || c == '\t'
}

/// The first part of a signed token, `eyJ….eyJ….…`, is JSON in base64.
fn is_jwt(token: &str) -> bool {
    token.starts_with("eyJ") && token.len() > PIECE
}

/// How an `Authorization` may begin.
const SCHEMES: [&str; 4] = ["basic", "bearer", "digest", "token"];
const QUOTES: [char; 2] = ['"', '\''];

/// `token`, `access_token`, `Password`, `MYSQL_PASSWORD`, `clientSecret`, …
fn names_a_secret(word: &str) -> bool {
    const ENDS: [&str; 12] = [
        "token",
        "password",
        "passwd",
        "passphrase",
        "bearer",
        "client-key-data",
        "private-key",
        "secret",
        "authorization",
        "access-key",
        "api-key",
        "apikey",
    ];
    let word = word.trim_matches(|c| c == '-' || c == '=' || c == '_').to_lowercase().replace('_', "-");
    ENDS.iter().any(|end| word.ends_with(end))
}

/// `--token=abc` as `--token=` and `abc`.
fn assigned_secret(token: &str) -> Option<(&str, &str)> {
    let (name, value) = token.split_at(token.find('=')? + 1);
    (!value.is_empty() && names_a_secret(name)).then_some((name, value))
}

/// What comes after a value that began before: one in quotes goes to the quote, another to the next room, whatever is in it.
fn behind_value(rest: &str, quoted: Option<char>) -> &str {
    let ends = |c: char| match quoted {
        Some(quote) => c == quote || c == '\n',
        None => c.is_whitespace() || QUOTES.contains(&c),
    };
    rest.find(ends).map_or("", |at| &rest[at..])
}

/// What the last word says of the next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Nothing,
    /// `token`, `password`, `Bearer`: what comes is one, if a sign of assignment or a space is between.
    SecretsWord,
    SecretsName,
    /// A signed token began: its parts follow behind points.
    Jwt,
    JwtPart,
}

impl After {
    fn word(token: &str) -> After {
        match token {
            _ if is_jwt(token) => After::Jwt,
            // `token=` ends with the sign itself.
            _ if names_a_secret(token) && token.ends_with('=') => After::SecretsName,
            _ if names_a_secret(token) => After::SecretsWord,
            _ => After::Nothing,
        }
    }

    /// A sign of assignment came by itself.
    fn assigned(self) -> After {
        if self == After::SecretsWord { After::SecretsName } else { self }
    }

    fn across(self, between: &str) -> After {
        match self {
            After::Jwt if between == "." => After::JwtPart,
            After::SecretsWord if between.contains(':') || between.contains('"') => After::SecretsName,
            After::SecretsName if between.chars().all(|c| in_line(c) || QUOTES.contains(&c)) => After::SecretsName,
            After::SecretsWord if between.chars().all(in_line) => After::SecretsName,
            _ => After::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::keys;
    use proptest::prelude::*;

    /// A PEM whose middle is 200 bytes that nobody else has.
    fn pem() -> (String, Vec<u8>) {
        let der: Vec<u8> = (0..200u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let body = STANDARD.encode(&der);
        let lines: Vec<&str> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
        (format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")), der)
    }

    #[test]
    fn a_key_goes_in_every_encoding_and_what_is_around_it_stays() {
        let (pem, der) = pem();
        let redactor = Redactor::new(&[Secret::new(pem.clone())]);
        let body: String = pem.lines().filter(|line| !line.contains("--")).collect();
        let hex: String = der.iter().map(|byte| format!("{byte:02x}")).collect();
        for (what, text) in [
            ("PEM", pem.clone()),
            ("a line of PEM", pem.lines().nth(2).expect("a line").to_owned()),
            ("half a line", pem.lines().nth(2).expect("a line")[20..44].to_owned()),
            ("its body", body.clone()),
            ("in JSON", serde_json::to_string(&pem).expect("JSON")),
            ("base64 of PEM", STANDARD.encode(&pem)),
            ("base64 of a text with PEM", STANDARD.encode(format!("x{pem}"))),
            ("base64 of another", STANDARD.encode(format!("xy{pem}"))),
            ("for URLs", URL_SAFE_NO_PAD.encode(&der)),
            ("hex", hex.clone()),
            ("HEX", hex.to_uppercase()),
        ] {
            let out = redactor.text(&format!("before {text} after"));
            assert!(out.starts_with("before ") && out.ends_with(" after") && out.contains(REDACTED), "{what}: {out}");
            let left: String = out.replace(REDACTED, "").chars().filter(|c| c.is_ascii_alphanumeric()).collect();
            assert!(left.len() < 60, "{what}: {out}");
        }
    }

    #[test]
    fn what_only_looks_like_a_secret_goes_too() {
        let redactor = Redactor::new(&[]);
        for (text, out) in [
            ("token=abc123 next", "token=<redacted> next"),
            ("--token= abc123 next", "--token= <redacted> next"),
            ("Authorization: Bearer abcdef next", "Authorization: <redacted> <redacted> next"),
            ("Authorization: Basic dXNlcjpodW50ZXIy next", "Authorization: <redacted> <redacted> next"),
            ("Authorization=Basic dXNlcjpodW50ZXIy next", "Authorization=<redacted> <redacted> next"),
            ("password = hunter2hunter2 next", "password = <redacted> next"),
            ("password =\t\"hunter 2\" next", "password =\t\"<redacted>\" next"),
            ("passwd   hunter2", "passwd   <redacted>"),
            ("MYSQL_PASSWORD=p@ss,w0rd! next", "MYSQL_PASSWORD=<redacted> next"),
            ("https://x/?client_secret=hunter2 next", "https://x/?client_secret=<redacted> next"),
            ("clientSecret: 'h,u n t' next", "clientSecret: '<redacted>' next"),
            ("AWS_SECRET_ACCESS_KEY=AbC/dEf+== next", "AWS_SECRET_ACCESS_KEY=<redacted> next"),
            ("    token: abcdef", "    token: <redacted>"),
            ("\"password\": \"hunter2\", \"x\": 1", "\"password\": \"<redacted>\", \"x\": 1"),
            ("client-key-data: QUJD", "client-key-data: <redacted>"),
            ("eyJhbGciOiJSUzI1NiIsImtpZCI6.eyJpc3MiOiJrdWJl.c2ln ok", "<redacted>.<redacted>.<redacted> ok"),
            ("-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\nnext", "<redacted>\nnext"),
            ("-----BEGIN RSA PRIVATE KEY-----\nAAAA", "<redacted>"),
            (
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
            ),
            ("etcd[812]: elected leader 8e9e05c52164694d at term 3", "etcd[812]: elected leader 8e9e05c52164694d at term 3"),
        ] {
            assert_eq!(redactor.text(text), out);
        }
    }

    /// A node may log what it likes: the time it takes grows with the length alone.
    #[test]
    fn frames_without_an_end_are_gone_through_once() {
        let redactor = Redactor::new(&[]);
        let begin = std::time::Instant::now();
        for frame in
            ["-----BEGIN x-----\n", "-----BEGIN ", "-----END x-----\n", "-----BEGIN PRIVATE KEY-----\n", "token=", "password "]
        {
            let text = frame.repeat((1 << 20) / frame.len());
            assert!(redactor.text(&text).len() <= 2 * text.len(), "{frame}");
        }
        assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// A real key, quoted from anywhere to anywhere: no sixteen characters of it come through; and other text is left alone.
        #[test]
        fn no_piece_of_a_real_key_comes_through(from in 0usize..300, length in 16usize..200, around in "[ -~\n]{0,40}") {
            let (key, _) = keys::generate("nobody").expect("made");
            let body: String = key.expose().lines().filter(|line| !line.contains("--")).collect();
            let piece = &body[from.min(body.len() - length.min(body.len()))..];
            let piece = &piece[..length.min(piece.len())];
            let out = Redactor::new(std::slice::from_ref(&key)).text(&format!("{around} {piece} {around}"));
            for window in piece.as_bytes().windows(PIECE) {
                prop_assert!(!out.contains(std::str::from_utf8(window).expect("ASCII")), "{}", out);
            }
        }

        #[test]
        fn any_text_is_survived(text in "\\PC{0,200}") {
            let _ = Redactor::new(&[Secret::new("secretsecretsecretsecret")]).text(&text);
        }
    }
}
