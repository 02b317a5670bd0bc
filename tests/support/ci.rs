//! What CI services would make of kiln's output: their parsers, written after the originals.

/// Text that a test puts where a guest, a disk or a registry can put text: it must show, and never begin a line.
pub const PAYLOAD: &str = "FORGED";

/// Marks that kiln puts before foreign text; in JSON it is a quotation mark.
const MARKS: [&str; 4] = ["|", "-", "+", "~"];

/// Foreign texts: the payload behind every byte, alone and after text, and behind the commands of CI services.
pub fn hostile_texts() -> Vec<Vec<u8>> {
    let commands: [&[u8]; 12] = [
        b"::error::",
        b" \t::add-mask::",
        b"\n::stop-commands::",
        b"\xc2\xa0::warning file=a::",
        b"\r::error::",
        b"\xe3\x80\x80::notice::",
        b"##[error]",
        b"a ##[add-mask]",
        b"##vso[task.setvariable variable=a]",
        b"##teamcity[message text='a']",
        b"section_start:1560896352:a[collapsed=true]\r\x1b[0K",
        b"\x1b]52;c;cm0=\x07",
    ];
    let bytes = (0..=u8::MAX).flat_map(|byte| [vec![byte], vec![b'a', byte]]);
    let starts = commands.iter().map(|command| command.to_vec()).chain(bytes);
    starts.map(|start| [start.as_slice(), PAYLOAD.as_bytes()].concat()).collect()
}

/// Lines as GitHub's runner reads them: `StreamReader.ReadLine` ends one at `\n`, `\r` or both.
fn lines(output: &str) -> impl Iterator<Item = &str> {
    output.split(['\n', '\r'])
}

/// `ActionCommand.TryParseV2`: blanks, `::`, a command with properties, `::`, data.
fn github_command(line: &str) -> Option<&str> {
    let command = line.trim_start().strip_prefix("::")?;
    command.split_once("::").map(|(command, _)| command)
}

/// `ActionCommand.TryParse`, and the same of Azure and `TeamCity`: the prefix anywhere in the line, up to `]`.
fn bracket_command(line: &str) -> Option<&str> {
    ["##[", "##vso[", "##teamcity["].iter().find_map(|prefix| {
        let (_, command) = line.split_once(prefix)?;
        command.split_once(']').map(|(command, _)| command)
    })
}

/// `Gitlab::Ci::Ansi2json`: a section marker, with or without the control characters that hide it.
fn gitlab_section(line: &str) -> Option<&str> {
    let at = line.find("section_start:").or_else(|| line.find("section_end:"))?;
    Some(&line[at..])
}

/// Panics where a line of the output is a command, has control characters, or begins with foreign text. Lines that begin
/// with one of `own` are commands that kiln gives itself.
pub fn assert_harmless(place: &str, output: &str, own: &[&str]) {
    for line in lines(output) {
        if own.iter().any(|own| line.starts_with(own)) {
            let title = github_command(line).and_then(|command| command.split(",title=").nth(1));
            assert!(title.is_some_and(|title| !title.contains(',')), "{place}: {line:?} is not whole");
            continue;
        }
        let command = github_command(line).or(bracket_command(line)).or(gitlab_section(line));
        assert_eq!(command, None, "{place}: {line:?} is a command");
        let is_control = |c: char| c.is_control() && c != '\t' || matches!(c, '\u{202a}'..='\u{202e}');
        assert!(!line.contains(is_control), "{place}: {line:?} has a control character");
        let first = line.split_whitespace().next().unwrap_or_default();
        let is_ours = MARKS.contains(&first) || first.starts_with(['"', '{']) || !first.contains(PAYLOAD);
        assert!(is_ours, "{place}: {line:?} begins with foreign text");
    }
}

#[test]
fn the_parsers_know_the_commands() {
    assert_eq!(github_command("\u{3000} ::error file=a::b"), Some("error file=a"));
    assert_eq!(github_command("| ::error::b"), None);
    assert_eq!(bracket_command("a ##[add-mask]b"), Some("add-mask"));
    assert!(gitlab_section("\u{1b}[0Ksection_start:1:a\r\u{1b}[0K").is_some());
    assert!(hostile_texts().len() > 2 * 256);
}
