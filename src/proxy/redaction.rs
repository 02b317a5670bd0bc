//! Leaves credentials out of URLs: what is recorded is read by everybody who reads `kiln.lock`, a log or a provenance.

use percent_encoding::percent_decode_str;

/// Words in the names of parameters whose values are credentials.
const WORDS: [&str; 19] = [
    "token",
    "apikey",
    "accesskey",
    "accesskeyid",
    "secret",
    "password",
    "passwd",
    "pwd",
    "signature",
    "sig",
    "credential",
    "authorization",
    "auth",
    "key",
    "jwt",
    "sessionid",
    "session",
    "policy",
    "hmac",
];
/// Words in the names of parameters whose values tell a file or a version by a digest or a number, and give no access.
const IDENTIFIERS: [&str; 17] = [
    "checksum", "commit", "digest", "etag", "guid", "h", "hash", "id", "md5", "oid", "ref", "rev", "revision", "sha",
    "sha1", "sha256", "uuid",
];
/// The fewest letters and digits of a value that is taken for a random one.
const SHORTEST_RANDOM: usize = 16;
/// The length of a run of letters and digits that no word has.
const LONGEST_WORD: usize = 32;
/// What stands for a credential.
const LEFT_OUT: &str = "-";

/// Returns a URL without its fragment, and with the values of parameters that are credentials left out.
pub(super) fn redact(url: &str) -> String {
    let url = url.split('#').next().unwrap_or_default();
    let Some((place, query)) = url.split_once('?') else { return url.to_owned() };
    let parameters: Vec<String> = query.split('&').map(redact_parameter).collect();
    format!("{place}?{}", parameters.join("&"))
}

/// Returns the value of a `Link` header (RFC 8288) with each of its URLs redacted.
pub(super) fn redact_links(header: &str) -> String {
    let parts = header.split_inclusive('>').map(|part| match part.split_once('<') {
        Some((before, url)) => match url.strip_suffix('>') {
            Some(url) => format!("{before}<{}>", redact(url)),
            None => redact(part),
        },
        None => part.to_owned(),
    });
    parts.collect()
}

/// Returns whether a URL is one of which a credential was left out.
pub(super) fn is_redacted(url: &str) -> bool {
    let query = url.split_once('?').map_or("", |(_, query)| query);
    query.split('&').any(|parameter| parameter.split_once('=').map_or(parameter, |(_, value)| value) == LEFT_OUT)
}

fn redact_parameter(parameter: &str) -> String {
    match parameter.split_once('=') {
        Some((name, value)) if is_credential(name, value) => format!("{name}={LEFT_OUT}"),
        None if is_random(parameter) => LEFT_OUT.to_owned(),
        _ => parameter.to_owned(),
    }
}

/// Returns whether the value of a parameter is a credential: by its name, or because it is as long and random as one.
fn is_credential(name: &str, value: &str) -> bool {
    if value.is_empty() {
        return false;
    }
    let words = words_of(name);
    let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    has(&WORDS) || (is_random(value) && !(has(&IDENTIFIERS) && is_identifier(value)))
}

/// Returns whether a value looks random: it changes between letters and digits, or from small letters to capitals, more often
/// than words and versions do, or has more letters and digits in a row than a word.
fn is_random(value: &str) -> bool {
    let value = percent_decode_str(value).decode_utf8_lossy();
    let count = value.chars().filter(char::is_ascii_alphanumeric).count();
    let changes = value.as_bytes().windows(2).filter(|pair| is_change(pair[0], pair[1])).count();
    let runs = value.split(|letter: char| !letter.is_ascii_alphanumeric()).map(str::len);
    (count >= SHORTEST_RANDOM && changes * 5 >= count) || runs.max().is_some_and(|run| run >= LONGEST_WORD)
}

fn is_change(one: u8, next: u8) -> bool {
    let is_digit_beside_letter =
        one.is_ascii_alphanumeric() && next.is_ascii_alphanumeric() && one.is_ascii_digit() != next.is_ascii_digit();
    is_digit_beside_letter || (one.is_ascii_lowercase() && next.is_ascii_uppercase())
}

/// Returns whether a value has the form of a digest or a UUID, perhaps after the name of an algorithm.
fn is_identifier(value: &str) -> bool {
    let decoded = percent_decode_str(value).decode_utf8_lossy();
    let digits = decoded.rsplit(':').next().unwrap_or_default();
    digits.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Returns the words of a name, in lower case.
fn words_of(name: &str) -> Vec<String> {
    let parts = name.split(|letter: char| !letter.is_ascii_alphanumeric()).flat_map(camel_words);
    parts.map(|word| word.to_ascii_lowercase()).collect()
}

/// Splits a name before each capital that follows a small letter.
fn camel_words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut was_small = false;
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && was_small {
            words.push(String::new());
        }
        was_small = letter.is_ascii_lowercase();
        words.last_mut().expect("there is a word").push(letter);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_left_out() {
        for (url, expected) in [
            ("https://a/b", "https://a/b"),
            ("https://a/b?version=1&c=", "https://a/b?version=1&c="),
            ("https://a/b?token=abc#part", "https://a/b?token=-"),
            ("https://a/b?v=1&X-Amz-Signature=f00&X-Amz-Date=1", "https://a/b?v=1&X-Amz-Signature=-&X-Amz-Date=1"),
            ("https://a/b?sig=x&se=2030&sp=r", "https://a/b?sig=-&se=2030&sp=r"),
            ("https://a/b?api_key=1&access-token=2&keyword=3", "https://a/b?api_key=-&access-token=-&keyword=3"),
            (
                "https://a/b?tokenizer=x&accessToken=2&AWSAccessKeyId=3",
                "https://a/b?tokenizer=x&accessToken=-&AWSAccessKeyId=-",
            ),
            ("/b?X-Amz-Security-Token=1", "/b?X-Amz-Security-Token=-"),
            ("/b?Policy=eyJT&Key-Pair-Id=K2&Signature=x", "/b?Policy=-&Key-Pair-Id=-&Signature=-"),
        ] {
            assert_eq!(redact(url), expected);
            assert_eq!(redact(expected), expected);
        }
    }

    #[test]
    fn n25_long_random_values_are_left_out_whatever_their_names() {
        for value in [
            "Zk3vQ9xT1bLm8RsWp0Yc",
            "kJ8s-2hQz_7Lm4PvX9Rt1g",
            "0cc175b9c0f1b6a831c399e269772661",
            "550e8400-e29b-41d4-a716-446655440000",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
            "st%3D1700000000~exp%3D1700009999~acl%3D%2F*~x%3Dd3b07384d113edec49eaa6238ad5ff00d3b07384",
            "a8Fs3%2Bk9Qe7%2Fz2Wm5xN1%3D%3D",
        ] {
            for (url, expected) in [
                (format!("https://a/b?code={value}&v=1"), "https://a/b?code=-&v=1"),
                (format!("https://a/b?st={value}&e=1764558000"), "https://a/b?st=-&e=1764558000"),
                (format!("https://a/b?{value}"), "https://a/b?-"),
            ] {
                assert_eq!(redact(&url), expected);
                assert!(is_redacted(expected) && !is_redacted(&url));
                assert_eq!(redact(expected), expected);
            }
        }
        // The form of a digest is no reason to show a value that is none.
        assert_eq!(redact("https://a/b?md5=kJ8s-2hQz_7Lm4PvX9Rt1g"), "https://a/b?md5=-");
    }

    #[test]
    fn harmless_values_stay() {
        for query in [
            "service=git-upload-pack",
            "file=linux-image-6.1.0-13-amd64-unsigned_6.1.55-1_amd64.deb",
            "p=libc6-dev_2.36-9%2Bdeb12u4_amd64.deb",
            "version=1:2.3.4-5ubuntu6.7~22.04.1%2Besm2",
            "target=x86_64-unknown-linux-gnu&date=20261201T030000Z&se=2026-12-01T03%3A00%3A00Z",
            "method=getPackageVersionsById",
            "url=https%3A%2F%2Fexample.org%2Fpool%2Fmain%2Fn%2Fnginx%2F",
            "id=4bc71b1c5e0a9d8f7e6d5c4b3a29181706f5e4d3",
            "digest=sha256%3Ae3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "build-uuid=550e8400-e29b-41d4-a716-446655440000",
        ] {
            let url = format!("https://a.example/b?{query}");
            assert_eq!(redact(&url), url);
        }
    }

    #[test]
    fn each_url_of_a_link_header_is_redacted() {
        let header = "<https://a/?page=2>; rel=\"next\", </b?token=x&p=1>; rel=\"last\"";
        assert_eq!(redact_links(header), "<https://a/?page=2>; rel=\"next\", </b?token=-&p=1>; rel=\"last\"");
        assert_eq!(redact_links("</b?token=x"), "</b?token=-");
    }
}
