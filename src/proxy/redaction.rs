//! Leaves credentials out of URLs: what is recorded is read by everybody who reads `kiln.lock`, a log or a provenance.

/// Words in the names of parameters whose values are credentials.
const WORDS: [&str; 17] = [
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
];
/// What stands for a credential.
const LEFT_OUT: &str = "-";

/// Returns a URL without its fragment, and with the values of parameters that are credentials left out.
pub(super) fn redact(url: &str) -> String {
    let url = url.split('#').next().unwrap_or_default();
    let Some((place, query)) = url.split_once('?') else { return url.to_owned() };
    let parameters: Vec<String> = query.split('&').map(redact_parameter).collect();
    format!("{place}?{}", parameters.join("&"))
}

fn redact_parameter(parameter: &str) -> String {
    match parameter.split_once('=') {
        Some((name, value)) if is_credential(name) && !value.is_empty() => format!("{name}={LEFT_OUT}"),
        _ => parameter.to_owned(),
    }
}

fn is_credential(name: &str) -> bool {
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric()).flat_map(camel_words);
    words.into_iter().any(|word| WORDS.contains(&word.to_ascii_lowercase().as_str()))
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
        ] {
            assert_eq!(redact(url), expected);
            assert_eq!(redact(expected), expected);
        }
    }
}
