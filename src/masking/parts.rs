//! Finds the parts of a secret that are secret by themselves. Programs seldom print a whole key file or a whole service
//! account: they print a line of one, or a value of the other.
//!
//! ```text
//! secret ──JSON?──> its strings ─────────────┐
//!        └─lines──> KEY=VALUE, key: value ───┼──secret by name or looks?──> units
//!                └> other lines, such as those of a key ──────────────────> units
//! ```

use std::collections::BTreeSet;

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::Value;

use super::forms::{WrittenForm, common_forms, written_forms};
use super::leaf::{KeyMeaning, is_secret_leaf, looks_random, url_password};
use super::{OVERLAP, PIECE, SHORTEST_MASKED};

/// Size above which only the most common forms of a secret are used, bytes: the memory for the others would be large too.
const MOST_WITH_ALL_FORMS: usize = 8 << 10;
/// Length above which a unit that looks random is cut into shorter pieces, each of which identifies it, bytes.
const DENSE: usize = 48;
/// Depth to which encoded texts are unpacked, such as a private key in base64 in JSON.
const DEEPEST: usize = 4;
/// Minimum length of base64 that is decoded, bytes.
const SHORTEST_BASE64: usize = 8;
/// Beginnings of public lines.
const PUBLIC_LINES: [&str; 7] = [
    "ssh-rsa ",
    "ssh-ed25519 ",
    "ssh-dss ",
    "ecdsa-sha2-",
    "sk-ssh-",
    "sk-ecdsa-",
    // The head of every private key of OpenSSH, before the key.
    "b3BlbnNzaC1rZXktdjE",
];
/// Parts of the labels of public blocks in PEM files.
const PUBLIC_LABELS: [&[u8]; 3] = [b"CERTIFICATE", b"PUBLIC KEY", b"X509 CRL"];
/// Words that precede a password in a netrc(5) file and similar ones.
const PASSWORD_WORDS: [&str; 4] = ["password", "passwd", "token", "secret"];
/// Minimum number of digits of a number that is secret by its name.
const SHORTEST_NUMBER: usize = 8;

/// A secret with its parts.
#[derive(Debug)]
pub(crate) struct SecretParts {
    whole: Vec<u8>,
    units: BTreeSet<Vec<u8>>,
    has_all_forms: bool,
}

impl SecretParts {
    pub(crate) fn new(value: &[u8]) -> Self {
        let whole = value.trim_ascii();
        let mut collector = UnitCollector::default();
        collector.add_text(whole, 0);
        if !whole.contains(&b'\n') && parse_json(whole).is_none() {
            collector.add(whole);
        }
        if collector.0.is_empty() {
            whole.split(|byte| *byte == b'\n').for_each(|line| collector.add(line.trim_ascii()));
        }
        let has_all_forms = whole.len() <= MOST_WITH_ALL_FORMS;
        Self { whole: whole.to_vec(), units: collector.0, has_all_forms }
    }

    /// Returns the secret without surrounding white space.
    pub(crate) fn whole(&self) -> &[u8] {
        &self.whole
    }

    /// Returns the lines and values that are secret by themselves; for a secret of one line, that is the line and its secret
    /// parts. There is at least one, if any line is long enough.
    pub(crate) fn units(&self) -> impl Iterator<Item = &[u8]> {
        self.units.iter().map(Vec::as_slice)
    }

    /// Returns the forms of a piece of a unit.
    pub(crate) fn forms_of(&self, piece: &[u8]) -> Vec<WrittenForm> {
        if self.has_all_forms { written_forms(piece) } else { common_forms(piece) }
    }
}

/// Cuts a long unit into overlapping pieces; the last one is as long as the others. A unit that looks random is cut into
/// pieces of `dense` bytes.
pub(crate) fn pieces_of_unit(unit: &[u8], dense: usize) -> impl Iterator<Item = &[u8]> {
    let is_dense =
        unit.len() >= DENSE && std::str::from_utf8(unit).is_ok_and(|text| looks_random(text) && !text.contains("://"));
    pieces(unit, if is_dense { dense } else { PIECE })
}

/// Cuts a long value into overlapping pieces of this length; the last one is as long as the others.
pub(super) fn pieces(value: &[u8], length: usize) -> impl Iterator<Item = &[u8]> {
    let last = value.len().saturating_sub(length);
    let starts = (0..last).step_by(length - OVERLAP).chain([last]);
    starts.map(move |start| &value[start..value.len().min(start + length)])
}

#[derive(Default)]
struct UnitCollector(BTreeSet<Vec<u8>>);

impl UnitCollector {
    fn add(&mut self, unit: &[u8]) {
        if unit.len() >= SHORTEST_MASKED {
            self.0.insert(unit.to_vec());
        }
    }

    /// Splits a text of one or more lines into its parts.
    fn add_text(&mut self, text: &[u8], depth: usize) {
        if depth > DEEPEST {
            return self.add(text);
        }
        if let Some(json) = parse_json(text) {
            return self.add_json("", &json, depth);
        }
        let mut is_public = false;
        for line in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
            match PemBoundary::new(line) {
                Some(boundary) => is_public = matches!(boundary, PemBoundary::Public),
                None if is_public => {}
                None => match std::str::from_utf8(line) {
                    Ok(line) => self.add_line(line, depth),
                    Err(_) => self.add(line),
                },
            }
        }
    }

    fn add_json(&mut self, key: &str, json: &Value, depth: usize) {
        match json {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| self.add_json(name, value, depth)),
            Value::Array(values) => values.iter().for_each(|value| self.add_json(key, value, depth)),
            Value::String(text) => _ = self.add_leaf(key, text, depth),
            Value::Number(number) if KeyMeaning::new(key) == KeyMeaning::Secret => {
                let digits = number.to_string();
                if digits.len() >= SHORTEST_NUMBER {
                    self.add(digits.as_bytes());
                }
            }
            Value::Number(_) | Value::Bool(_) | Value::Null => {}
        }
    }

    /// Adds the value of a name if it is secret, and its parts.
    fn add_leaf(&mut self, key: &str, value: &str, depth: usize) -> bool {
        let before = self.0.len();
        let value = value.trim();
        let is_public = KeyMeaning::new(key) == KeyMeaning::Public;
        if value.contains('\n') || parse_json(value.as_bytes()).is_some() {
            if !is_public {
                self.add_text(value.as_bytes(), depth + 1);
            }
        } else if let Some(text) = decode_base64(value).filter(|_| !is_public) {
            self.add_text(text.as_bytes(), depth + 1);
            if self.0.len() > before {
                self.add(value.as_bytes());
            }
        } else if is_secret_leaf(key, value) {
            self.add(value.as_bytes());
            self.add_inner(value);
        }
        self.0.len() > before
    }

    fn add_line(&mut self, line: &str, depth: usize) {
        if is_structural(line) {
            return;
        }
        if let Some(json) = parse_json(line.as_bytes()) {
            return self.add_json("", &json, depth);
        }
        let assignments: Vec<(&str, &str)> = line.split(';').filter_map(split_assignment).collect();
        let assignments = if line.contains(';') && assignments.len() > 1 {
            assignments
        } else {
            split_assignment(line).into_iter().collect()
        };
        let named = if assignments.is_empty() { split_netrc(line) } else { Some(assignments) };
        match named {
            Some(named) => {
                for (key, value) in named {
                    if self.add_leaf(key, value, depth) {
                        self.add(line.as_bytes());
                    }
                }
            }
            None => self.add_plain_line(line, depth),
        }
    }

    fn add_plain_line(&mut self, line: &str, depth: usize) {
        if let Some(item) = line.strip_prefix("- ") {
            self.add_leaf("", item, depth);
            return;
        }
        self.add(line.as_bytes());
        self.add_inner(line);
        if let Some(text) = decode_base64(line) {
            self.add_text(text.as_bytes(), depth + 1);
        }
    }

    /// Adds the password of a URL, and of `user:password`.
    fn add_inner(&mut self, text: &str) {
        match (url_password(text), text.rsplit_once(':')) {
            (Some(password), _) => self.add(password.as_bytes()),
            (None, Some((_, password))) if looks_random(password) && !text.contains("://") => {
                self.add(password.as_bytes());
            }
            (None, _) => {}
        }
    }
}

/// A line such as `-----BEGIN CERTIFICATE-----`.
enum PemBoundary {
    /// The content that follows is public.
    Public,
    /// The content that follows is a key, or there is none.
    Other,
}

impl PemBoundary {
    fn new(line: &[u8]) -> Option<Self> {
        let label = line.strip_prefix(b"-----").or_else(|| line.strip_prefix(b"---- "))?;
        let begins = label.strip_prefix(b"BEGIN ");
        if begins.is_none() && !label.starts_with(b"END ") {
            return None;
        }
        let is_public = begins.is_some_and(|label| {
            PUBLIC_LABELS.iter().any(|name| label.windows(name.len()).any(|window| window == *name))
        });
        Some(if is_public { PemBoundary::Public } else { PemBoundary::Other })
    }
}

fn parse_json(text: &[u8]) -> Option<Value> {
    let is_json = matches!(text.trim_ascii().first(), Some(b'{' | b'['));
    is_json.then(|| serde_json::from_slice(text).ok()).flatten()
}

/// Returns whether one of several lines is a comment, a heading, or public.
fn is_structural(line: &str) -> bool {
    let is_comment = ["#", "//", ";"].iter().any(|start| line.starts_with(start))
        && line.contains(char::is_whitespace)
        && !line.contains(":_auth");
    let is_heading = line.ends_with(':') || line.starts_with('[') && line.ends_with(']');
    let is_tag = line.starts_with('<') && line.ends_with('>') && split_element(line).is_none();
    let has_no_word = !line.bytes().any(|byte| byte.is_ascii_alphanumeric() || !byte.is_ascii());
    let is_rule = has_no_word && line.len() < 8;
    is_comment || is_heading || is_tag || is_rule || PUBLIC_LINES.iter().any(|start| line.starts_with(start))
}

/// Returns the name and the value of `KEY=VALUE`, `key: value` and `<key>value</key>`, without quotes.
fn split_assignment(line: &str) -> Option<(&str, &str)> {
    if let Some(element) = split_element(line) {
        return Some(element);
    }
    let line = line.trim();
    let line = line.strip_prefix("- ").unwrap_or(line);
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    let (key, value) = match (line.find('='), line.find(": ")) {
        (Some(equals), Some(colon)) if colon < equals => line.split_once(": ")?,
        (Some(_), _) => line.split_once('=')?,
        (None, _) => line.split_once(": ")?,
    };
    let key = unquoted(key.trim());
    let value = value.trim().trim_end_matches(',');
    let is_key = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-/:@[]*".contains(&byte))
        && key.bytes().any(|byte| byte.is_ascii_alphabetic());
    (is_key && !value.trim_matches('=').is_empty()).then(|| (key, unquoted(value)))
}

fn split_element(line: &str) -> Option<(&str, &str)> {
    let (key, rest) = line.trim().strip_prefix('<')?.split_once('>')?;
    let (value, _) = rest.rsplit_once("</")?;
    (!value.is_empty()).then_some((key, value))
}

/// Returns the passwords of a line of netrc(5); `None` if it is not one.
fn split_netrc(line: &str) -> Option<Vec<(&str, &str)>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_netrc = ["machine", "default", "login", "account", "password"].contains(words.first()?) && words.len() > 1;
    let pairs = words.windows(2).filter(|pair| PASSWORD_WORDS.contains(&pair[0]));
    is_netrc.then(|| pairs.map(|pair| (pair[0], pair[1])).collect())
}

fn unquoted(value: &str) -> &str {
    let mut quotes = ['"', '\''].into_iter();
    quotes.find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote)).unwrap_or(value)
}

/// Returns the decoded text of a base64 value, such as the key in a kubeconfig file.
fn decode_base64(value: &str) -> Option<String> {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    let alphabet = if value.contains(['-', '_']) { alphabet::URL_SAFE } else { alphabet::STANDARD };
    let bytes = GeneralPurpose::new(&alphabet, config).decode(value).ok().filter(|_| value.len() >= SHORTEST_BASE64)?;
    let text = String::from_utf8(bytes).ok()?;
    let is_text = text.chars().all(|char| !char.is_control() || char.is_ascii_whitespace());
    is_text.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(value: &str) -> Vec<String> {
        let parts = SecretParts::new(value.as_bytes());
        parts.units().map(|unit| String::from_utf8(unit.to_vec()).unwrap()).collect()
    }

    #[test]
    fn o3_the_secret_values_of_an_environment_file_are_parts() {
        let value = "# generated by an agent on 2026-11-29T08:00:00Z, do not edit by hand\n\
                     DB_USER=app\nDEBUG=true\nexport DB_PASSWORD=\"Hunter2CorrectHorse77\"\nURL=redis://:s3cr3t@db:6379\n";
        let expected = [
            "Hunter2CorrectHorse77",
            "URL=redis://:s3cr3t@db:6379",
            "export DB_PASSWORD=\"Hunter2CorrectHorse77\"",
            "redis://:s3cr3t@db:6379",
            "s3cr3t",
        ];
        assert_eq!(units(value), expected);
    }

    #[test]
    fn o3_the_secret_strings_of_json_are_parts() {
        let json = serde_json::json!({
            "type": "service_account",
            "private_key": "-----BEGIN PRIVATE KEY-----\nXWSrEPevGIUGwK8j3DZ8Em\nqwLMTkPLGvs+L2z3\n-----END PRIVATE KEY-----\n",
            "client_email": "app@project-1.iam.gserviceaccount.com",
            "token_uri": "https://oauth2.googleapis.com/token",
            "auths": { "ghcr.io": { "auth": "bWU6aHVudGVyMi1odW50ZXIy" } },
        });
        let expected = [
            "XWSrEPevGIUGwK8j3DZ8Em",
            "bWU6aHVudGVyMi1odW50ZXIy",
            "hunter2-hunter2",
            "me:hunter2-hunter2",
            "qwLMTkPLGvs+L2z3",
        ];
        assert_eq!(units(&json.to_string()), expected);
        assert_eq!(units(&serde_json::to_string_pretty(&json).unwrap()), expected);
    }

    #[test]
    fn o3_the_secret_scalars_of_yaml_are_parts() {
        let key =
            "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCk1JSUV2UUlCQURBTkJna3E5dzAKLS0tLS1FTkQgUFJJVkFURSBLRVktLS0tLQo=";
        let certificate =
            "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUJpRENDQVMyZ0F3SUJBZ0lCCi0tLS0tRU5EIENFUlRJRklDQVRFLS0tLS0K";
        let value = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority-data: {certificate}\n    \
             server: https://10.0.0.1:6443\n  name: one\nusers:\n- name: admin\n  user:\n    client-key-data: {key}\n"
        );
        assert_eq!(units(&value), [key, "MIIEvQIBADANBgkq9w0", &format!("client-key-data: {key}")]);
    }

    #[test]
    fn o3_other_files_of_secrets_have_parts() {
        for (value, part) in [
            ("machine git.example login me password hunter2-h", "hunter2-h"),
            ("machine git.example\n  login me\n  password hunter2-h\n", "hunter2-h"),
            ("//registry.npmjs.org/:_authToken=npm_hunter2\n", "npm_hunter2"),
            ("https://me:hunter2-h@git.example\n", "hunter2-h"),
            ("db:5432:prod:app:hunter2-h\n", "hunter2-h"),
            ("Server=db;User Id=sa;Password=hunter2-h;", "hunter2-h"),
            (
                "[default]\naws_access_key_id = AKIAABCDEFGHIJKLMNOP\naws_secret_access_key = hunter2/h+x\n",
                "hunter2/h+x",
            ),
            ("<settings>\n<server>\n<password>hunter2-h</password>\n</server>\n</settings>", "hunter2-h"),
            ("plain lines\nhunter2-h\n", "hunter2-h"),
        ] {
            assert!(units(value).iter().any(|unit| unit == part), "{value}: {:?}", units(value));
        }
    }

    #[test]
    fn o3_a_secret_that_seems_public_is_secret_as_a_whole() {
        assert_eq!(units("true"), ["true"]);
        assert_eq!(units("service_account"), ["service_account"]);
        assert_eq!(units("DB_USER=app"), ["DB_USER=app"]);
        assert_eq!(units("# one\n# two"), ["# one", "# two"]);
        assert_eq!(units("abc"), [""; 0]);
    }
}
