//! Decides which values of a structured secret, such as an environment file or a service account's JSON, are secret.

use super::SHORTEST_MASKED;

/// Minimum length of a value that is secret by its looks alone, bytes.
const SHORTEST_RANDOM: usize = 8;
/// Minimum length of a value without a digit that is secret by its looks alone, bytes.
const SHORTEST_WITHOUT_DIGITS: usize = 16;
/// Minimum length of a part of a URL that is secret by its looks alone, bytes.
const SHORTEST_URL_TOKEN: usize = 16;
/// Minimum length of hexadecimal digits that cannot be a version or date.
const SHORTEST_HEX_TOKEN: usize = 32;

/// Last words of names whose values are public, unless the value is a URL with credentials.
const PUBLIC_WORDS: &str = "\
    account address apiversion audience bucket cluster comment context database db description \
    dir directory domain email endpoint env environment expires file format host hostname \
    issuer kind level login mail mode name namespace org organization path port project \
    protocol provider region registry scheme scope scopes server timeout type uri url user \
    username version zone";
/// Words in the names of secret values.
const SECRET_WORDS: [&str; 10] =
    ["auth", "credential", "key", "pass", "pin", "private", "pwd", "secret", "session", "token"];
/// Common values that are no secret in a file of several values.
const COMMON_VALUES: &str = "\
    admin changeme debug default development disabled enabled error false info local localhost \
    none null password postgres prod production required root secret staging test true \
    undefined user warning";

fn is_listed(word: &str, list: &str) -> bool {
    list.split(' ').any(|listed| listed == word)
}

/// Meaning of a value's name.
#[derive(PartialEq, Eq)]
pub(super) enum KeyMeaning {
    Secret,
    Public,
    Unknown,
}

impl KeyMeaning {
    pub(super) fn new(key: &str) -> Self {
        let words = words(key);
        let last = words.last().map_or("", |word| word.trim_end_matches(|char: char| char.is_ascii_digit()));
        if is_listed(last, PUBLIC_WORDS) || words.iter().any(|word| word == "public") {
            return KeyMeaning::Public;
        }
        let joined = words.concat();
        if SECRET_WORDS.iter().any(|word| joined.contains(word)) { KeyMeaning::Secret } else { KeyMeaning::Unknown }
    }
}

/// Returns whether a name is that of a secret, such as `NPM_TOKEN` or `dbPassword`.
pub(crate) fn is_secret_name(name: &str) -> bool {
    KeyMeaning::new(name) == KeyMeaning::Secret
}

/// Returns the words of a name, such as `db`, `user` of `DB_USER` and of `dbUser`, in small letters.
fn words(key: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_small = false;
    for char in key.chars() {
        if !char.is_ascii_alphanumeric() || char.is_ascii_uppercase() && was_small {
            words.push(String::new());
        }
        if let (true, Some(word)) = (char.is_ascii_alphanumeric(), words.last_mut()) {
            word.push(char.to_ascii_lowercase());
        }
        was_small = char.is_ascii_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Returns whether the value of this name is secret.
pub(super) fn is_secret_leaf(key: &str, value: &str) -> bool {
    if is_url(value) {
        return url_password(value).is_some() || has_url_token(value);
    }
    if is_reference(value) || is_listed(&value.to_ascii_lowercase(), COMMON_VALUES) {
        return false;
    }
    match KeyMeaning::new(key) {
        KeyMeaning::Public => false,
        KeyMeaning::Secret => value.len() >= SHORTEST_MASKED,
        KeyMeaning::Unknown => looks_random(value),
    }
}

/// Returns whether a value looks like a token or password, and not like a host, a version, a date or an address.
pub(super) fn looks_random(value: &str) -> bool {
    let bytes = value.as_bytes();
    let has_digit = bytes.iter().any(u8::is_ascii_digit);
    let has_letter = bytes.iter().any(u8::is_ascii_alphabetic);
    let is_mixed = has_digit && has_letter || bytes.len() >= SHORTEST_WITHOUT_DIGITS && class_count(bytes) >= 3;
    bytes.len() >= SHORTEST_RANDOM && is_mixed && !bytes.iter().any(u8::is_ascii_whitespace) && !is_public_shape(value)
}

fn class_count(bytes: &[u8]) -> usize {
    let classes: [fn(&u8) -> bool; 4] =
        [u8::is_ascii_lowercase, u8::is_ascii_uppercase, u8::is_ascii_digit, u8::is_ascii_punctuation];
    classes.iter().filter(|is_of_class| bytes.iter().any(is_of_class)).count()
}

fn is_public_shape(value: &str) -> bool {
    let is_dotted = value.contains('.') && value.bytes().all(is_host_byte);
    let is_time = value.bytes().all(|byte| byte.is_ascii_digit() || b"-:.TZ+ ".contains(&byte));
    let is_address = value.split_once('@').is_some_and(|(user, host)| {
        user.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._%+-".contains(&byte))
            && host.contains('.')
            && host.bytes().all(is_host_byte)
    });
    is_dotted || is_time || is_address
}

fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_/:".contains(&byte)
}

/// Returns whether a value refers to a secret that is elsewhere: a variable, a template or a file.
fn is_reference(value: &str) -> bool {
    let is_path = value.starts_with('/') || value.starts_with("./") || value.starts_with("~/");
    ["${", "$(", "{{"].iter().any(|start| value.starts_with(start))
        || is_path && !value.bytes().any(|byte| b"+=".contains(&byte)) && !value.split('/').any(looks_random)
}

fn is_url(value: &str) -> bool {
    value.split_once("://").is_some_and(|(scheme, rest)| {
        !rest.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte))
    })
}

/// Returns the password of a URL's authority.
pub(super) fn url_password(value: &str) -> Option<&str> {
    let (_, rest) = value.split_once("://")?;
    let (user, _) = rest.split_once('/').map_or(rest, |(authority, _)| authority).rsplit_once('@')?;
    user.split_once(':').map(|(_, password)| password).filter(|password| !password.is_empty())
}

/// Returns whether a part of a URL must be a token.
fn has_url_token(value: &str) -> bool {
    value.split(|char: char| !char.is_ascii_alphanumeric() && char != '_' && char != '-').any(|part| {
        let bytes = part.as_bytes();
        let is_hex = bytes.len() >= SHORTEST_HEX_TOKEN && bytes.iter().all(u8::is_ascii_hexdigit);
        is_hex
            || bytes.len() >= SHORTEST_URL_TOKEN
                && [u8::is_ascii_lowercase, u8::is_ascii_uppercase, u8::is_ascii_digit]
                    .iter()
                    .all(|is_of_class| bytes.iter().any(is_of_class))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn o3_values_are_secret_by_their_names_or_their_looks() {
        for (key, value) in [
            ("DB_PASSWORD", "horse"),
            ("dbPassword", "correct horse"),
            ("aws_secret_access_key", "wJalrXUtnFEMI/K7MDENG"),
            ("//registry.npmjs.org/:_authToken", "npm_abcd"),
            ("PIN", "1234"),
            ("other", "f871b60d0617be19"),
            ("other", "Correct-Horse-Battery"),
            ("DATABASE_URL", "postgres://app:pw@db.internal/prod"),
            ("SLACK_WEBHOOK_URL", "https://hooks.slack.com/services/T0/B0/aBcD1234eFgH5678"),
        ] {
            assert!(is_secret_leaf(key, value), "{key}={value}");
        }
    }

    #[test]
    fn o3_public_values_are_not_secret() {
        for (key, value) in [
            ("type", "service_account"),
            ("client_email", "app@my-project-123.iam.gserviceaccount.com"),
            ("token_uri", "https://oauth2.googleapis.com/token"),
            ("client_x509_cert_url", "https://www.googleapis.com/robot/v1/metadata/x509/app%40my-project-123.iam"),
            ("DB_USER", "app12345678"),
            ("userName", "app12345678"),
            ("REGION", "eu-central-1"),
            ("DEBUG_TOKEN", "true"),
            ("SSL_KEY", "/etc/ssl/private/key.pem"),
            ("PASSWORD", "${VAULT_PASSWORD}"),
            ("public_key", "AAAAC3NzaC1lZDI1NTE5"),
            ("other", "rbac.authorization.k8s.io/v1"),
            ("other", "2026-11-29T08:00:00Z"),
            ("other", "production"),
        ] {
            assert!(!is_secret_leaf(key, value), "{key}={value}");
        }
    }
}
