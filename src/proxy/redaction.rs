//! Leaves credentials out of URLs: what is recorded is read by everybody who reads `kiln.lock`, a log or a provenance.

/// Parts of the names of parameters whose values are credentials, in lower case without `-`, `_` and `.`.
const CREDENTIALS: [&str; 12] = [
    "token",
    "apikey",
    "accesskey",
    "secret",
    "password",
    "passwd",
    "signature",
    "credential",
    "authorization",
    "sessionid",
    "privatekey",
    "keypairid",
];
/// Names of parameters that are credentials as a whole.
const WHOLE_NAMES: [&str; 7] = ["auth", "key", "sig", "pass", "pwd", "jwt", "policy"];
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
    let name: String =
        name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect();
    WHOLE_NAMES.contains(&name.as_str()) || CREDENTIALS.iter().any(|part| name.contains(part))
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
        ] {
            assert_eq!(redact(url), expected);
            assert_eq!(redact(expected), expected);
        }
    }
}
