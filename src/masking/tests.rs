use std::process::Command;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn mask(values: &[&str]) -> SecretMask {
    SecretMask::new(values.iter().map(|value| value.as_bytes()))
}

/// Returns the output of a stream that is written in pieces of these lengths, the last one with the rest.
fn streamed(mask: &SecretMask, mut text: &[u8], lengths: &[usize]) -> String {
    let (mut stream, mut out) = (mask.stream(), Vec::new());
    for length in lengths {
        let (piece, rest) = text.split_at((*length).min(text.len()));
        out.extend(stream.push(piece));
        text = rest;
    }
    out.extend(stream.push(text));
    out.extend(stream.finish());
    String::from_utf8(out).unwrap()
}

fn shell(script: &str, value: &str) -> Vec<u8> {
    let output = Command::new("bash").args(["-c", script, "bash", value]).output().unwrap();
    assert!(output.status.success(), "{script}");
    output.stdout
}

#[test]
fn o3_a_secret_within_a_secret_leaves_nothing() {
    let mask = mask(&["s3cr3t-pw", "postgres://u:s3cr3t-pw@db.internal/prod", "pw@db.int-and-more"]);
    assert_eq!(mask.mask_text("to postgres://u:s3cr3t-pw@db.internal/prod!"), "to [secret]!");
    assert_eq!(mask.mask_text("s3cr3t-pw@db.int-and-more"), "[secret]", "they overlap");
    assert_eq!(mask.mask_text("s3cr3t-p postgres://u:s3cr3t"), "s3cr3t-p postgres://u:s3cr3t", "neither is whole");
}

#[test]
fn o3_lines_and_values_that_are_too_short_stay() {
    let mask = mask(&["-----BEGIN-----\nabcdefgh\n-----END-----\n", "123"]);
    assert_eq!(mask.mask_text("token=abcdefgh; 123 apples"), "token=[secret]; 123 apples");
    assert_eq!(mask.mask_text("-----BEGIN-----\r\nabcdefgh\r\n"), "[secret]\r\n[secret]\r\n");
    assert_eq!(mask.mask_text("-----BEGIN KEY-----\r\nabcdefgh\r\n"), "-----BEGIN KEY-----\r\n[secret]\r\n");
    assert_eq!(mask.mask_text(r"-----BEGIN-----\nabcdefgh\n-----END-----"), "[secret]");
    assert_eq!(mask.mask_text(""), "");
}

#[test]
fn o3_only_what_may_begin_a_secret_is_held_back() {
    let mask = mask(&["hunter2-hunter2"]);
    let mut stream = mask.stream();
    let mut push = |text: &str| String::from_utf8(stream.push(text.as_bytes())).unwrap();
    assert_eq!(push("login: "), "login: ");
    assert_eq!(push("with\n"), "with\n", "a line whose last letter begins a secret is shown");
    assert_eq!(push("say hunt"), "say ");
    assert_eq!(push("ing!"), "hunting!");
    assert_eq!(push("hunter2-\n"), "");
    assert_eq!(push("hunter2.\n"), "[secret]\n[secret].\n");
    assert_eq!(push("hunter2-hun"), "");
    assert_eq!(stream.finish(), b"hunter2-hun");
}

#[test]
fn o3_a_long_value_is_masked_whole_and_held_back_by_the_piece() {
    let key: String =
        (0..5000_u32).map(|number| char::from(b'!' + u8::try_from(number * 7919 % 89).unwrap())).collect();
    let mask = mask(&[&key]);
    assert_eq!(mask.mask_text(&format!("a {key} b")), "a [secret] b");
    for script in
        ["printf %s \"$1\" | base64 -w0", "printf %s \"$1\" | base64", "printf %s \"$1\" | od -An -v -tx1 | tr -d ' '"]
    {
        let left = mask.mask_bytes(&shell(script, &key)).into_iter().filter(|byte| !is_line_end(*byte));
        assert_eq!(String::from_utf8(left.collect()).unwrap().replace(MASK, ""), "", "{script}");
    }
    let mut stream = mask.stream();
    let shown = stream.push(&key.as_bytes()[..4000]).len();
    assert!(stream.held.len() < 3 * PIECE && shown > 0, "{} bytes are held", stream.held.len());
}

#[test]
fn o3_what_programs_write_is_masked() {
    let value = "p@ss \"word\"+/?~'and' <more>\\ $&x";
    let mask = mask(&[value]);
    for script in [
        "printf %s \"$1\"",
        "printf %q \"$1\"",
        "printf %s \"$1\" | base64",
        "printf 'user:%s' \"$1\" | base64 -w 11",
        "printf 'a%s!' \"$1\" | base64 -w 64",
        "printf %s \"$1\" | od -An -v -tx1 -w5 | tr -d ' '",
    ] {
        let written = shell(script, value);
        let shown = String::from_utf8(mask.mask_bytes(&written)).unwrap();
        assert!(shown.contains(MASK), "{script}: {shown}");
        let left: usize = shown.replace(MASK, "").trim().len();
        assert!(left <= 18, "{script}: {shown}");
    }
}

#[test]
fn o3_what_is_left_of_an_interrupted_line_of_a_key_is_short() {
    let line = "XWSrEPevGIUGwK8j3DZ8EmqwLMTkPLGvs+L2z3tAbte6NZus0DMwntFlboI6s7zG";
    let mask = mask(&[&format!("-----BEGIN KEY-----\n{line}\n-----END KEY-----\n")]);
    for script in
        ["printf %s \"$1\"", "printf 'a%s' \"$1\" | base64 -w0", "printf %s \"$1\" | od -An -v -tx1 -w100 | tr -d ' '"]
    {
        let written = String::from_utf8(shell(script, line)).unwrap();
        for at in 0..written.trim().len() {
            let shown = mask.mask_text(&format!("{}\n[ 1.0] kernel\n{}", &written[..at], &written[at..]));
            let left = shown.replace(MASK, "").replace("\n[ 1.0] kernel\n", "").trim().len();
            let most = 2 * DENSE_PIECE * written.len() / line.len() + 6;
            assert!(left <= most, "{script} {at} {left}: {shown}");
        }
    }
}

#[test]
fn o3_backslashes_before_a_line_end_hide_no_secret() {
    let mask = mask(&["net\\nasc\\\\x", "QWxudW1TZWNyZXRacTcx"]);
    for text in [
        r"net\nasc\\x",
        r"\net\nasc\\x",
        r"\\\\\\net\nasc\\x\n",
        r"QWxu\ndW1T\r\nZWNy\\nZXRacTcx",
        r"\\QWxudW1TZWNyZXRacTcx\",
    ] {
        for cut in 0..text.len() {
            let shown = streamed(&mask, text.as_bytes(), &[cut]);
            let left = shown.replace(MASK, "").replace("\\n", "").replace("\\r", "").replace('\\', "");
            assert_eq!(left, "", "{text} {cut}: {shown}");
        }
    }
}

/// Prints the cost of masking; run it with `--nocapture`.
#[test]
fn masking_a_log_takes_time_by_its_length_only() {
    let key: String = (0..2000_u32).map(|number| char::from(b"aB3xZ9qK"[(number * 7919 % 61 % 8) as usize])).collect();
    let lines: Vec<&str> = key.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let log =
        "Get:42 http://deb.debian.org/debian bookworm/main amd64 libx11-6 amd64 2:1.8.4-2 [759 kB]\n".repeat(20_000);
    for (name, value) in [("a token", "AlnumSecretZq7193xKLm4"), ("a key", &lines.join("\n"))] {
        let begun = std::time::Instant::now();
        let mask = mask(&[value]);
        let built = begun.elapsed();
        let begun = std::time::Instant::now();
        assert_eq!(mask.mask_text(&log).len(), log.len());
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let cost = begun.elapsed().as_nanos() as f64 / log.len() as f64;
        println!("{name}: {mask:?}, made in {built:?}, {cost:.1} ns a byte");
    }
}

proptest! {
    /// Covers a secret in any form at any place around the edges at which streams are cut, in up to three writes.
    #[test]
    fn o3_no_cut_lets_a_secret_through(
        value in "[ -~]{4,40}",
        form in any::<prop::sample::Index>(),
        place in prop_oneof![0_usize..80, 4000_usize..4200, 65_400_usize..65_600],
        cuts in vec(0_usize..200, 0..3),
        wrap in prop_oneof![Just(0_usize), 1_usize..90],
    ) {
        prop_assume!(value.trim().len() >= SHORTEST_MASKED);
        let mask = mask(&[&value]);
        let forms = written_forms(value.trim().as_bytes());
        let written = form.get(&forms).bytes.clone();
        prop_assume!(written.len() >= SHORTEST_MASKED);
        let wrapped = if wrap == 0 { written.clone() } else { written.chunks(wrap).collect::<Vec<_>>().join(&b'\n') };
        let text = [&vec![0x1f; place][..], &wrapped, &[0x1f; 100]].concat();
        let first = (place + 1).saturating_sub(100);
        let lengths: Vec<usize> = std::iter::once(first).chain(cuts).collect();
        let shown = without_line_ends(streamed(&mask, &text, &lengths).as_bytes());
        let found = shown.windows(written.len()).any(|window| window == written);
        prop_assert!(!found || MASK.as_bytes().windows(written.len()).any(|window| window == written), "{value:?}");
    }
}
