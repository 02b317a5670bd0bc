//! Examines scripts before anything boots: whether the kernel of a guest can run them.
//!
//! Sources: execve(2) for the `#!` line, `fs/binfmt_script.c` of Linux for how it is cut, elf(5) for programs.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::process::quote_path;

/// The number of bytes of a file that are examined.
const EXAMINED: u64 = 1 << 20;
/// The number of bytes that the kernel reads of a file to detect its type (`BINPRM_BUF_SIZE`).
const KERNEL_READS: usize = 256;
/// The number of lines in which a misplaced `#!` is searched for.
const FIRST_LINES: usize = 20;
const HASH_BANG: &[u8] = b"#!";
const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";
const UTF16_MARKS: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];
const ELF: &[u8] = b"\x7fELF";
/// The first bytes of programs of other systems, and what they are.
const FOREIGN: [(&[u8], &str); 6] = [
    (b"MZ", "a program for Windows"),
    (b"\xcf\xfa\xed\xfe", "a program for macOS"),
    (b"\xce\xfa\xed\xfe", "a program for macOS"),
    (b"\xca\xfe\xba\xbe", "a program for macOS or Java"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"PK\x03\x04", "a zip archive"),
];
/// Interpreters that take a carriage return for a part of the command.
const SHELLS: [&str; 8] = ["sh", "ash", "bash", "busybox", "dash", "ksh", "mksh", "zsh"];
/// Names of machines by `e_machine`.
const MACHINES: [(u16, &str); 8] = [
    (3, "32-bit x86"),
    (8, "MIPS"),
    (20, "PowerPC"),
    (21, "64-bit PowerPC"),
    (22, "s390"),
    (40, "32-bit Arm"),
    (183, "64-bit Arm"),
    (243, "RISC-V"),
];
const X86_64: u16 = 62;
const I386: u16 = 3;

/// The reason why no guest can run a script. The messages follow `FILE:LINE: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// The script is empty.
    #[error("the script is empty, so there is nothing to run")]
    Empty,
    /// The script has no `#!` line.
    #[error("the script has no `#!` line, so the kernel cannot run it")]
    NoInterpreterLine,
    /// The `#!` is not at the beginning of the file.
    #[error("the `#!` is not at the very beginning of the script, where alone the kernel looks for it")]
    Misplaced,
    /// A byte order mark stands before the first line.
    #[error("the script begins with a byte order mark, so the kernel does not see its `#!` line")]
    ByteOrderMark,
    /// The script is encoded as UTF-16, which does not contain ASCII.
    #[error("the script is UTF-16 text, which the kernel cannot run")]
    Utf16,
    /// The first line ends with CR LF, as on Windows.
    #[error("the `#!` line ends with CR LF, so the kernel looks for an interpreter named `{0}\\r`")]
    CarriageReturn(String),
    /// The first line names no interpreter.
    #[error("the `#!` line names no interpreter")]
    NoInterpreter,
    /// The interpreter is a relative path, which the kernel looks for in the working directory alone.
    #[error("the interpreter `{0}` is not an absolute path, and the kernel does not search `PATH`")]
    NotAbsolute(String),
    /// `env` takes the rest of the line for the name of one program.
    #[error("`env` looks for a program named `{0}`, since the kernel passes the rest of the `#!` line as one argument")]
    EnvArguments(String),
    /// The `#!` line is longer than what the kernel reads of it.
    #[error("the `#!` line is longer than the {} bytes that the kernel reads", KERNEL_READS - 1)]
    TooLong,
    /// The script is an ELF file for another machine.
    #[error("this is a program for {0}, and the guest is an x86-64 machine")]
    OtherMachine(String),
    /// The script is an ELF file that is not a program.
    #[error("this is an ELF file, but no program: an object file, a core dump or a damaged file")]
    NoProgram,
    /// The script is another kind of file.
    #[error("this is {0}, which the guest cannot run")]
    Foreign(&'static str),
}

impl ScriptError {
    /// Returns advice on how to fix the script.
    pub fn remedy(&self, path: &Path) -> String {
        let path = quote_path(path);
        match self {
            Self::Empty => "write something into it, or remove the step".to_owned(),
            Self::NoInterpreterLine | Self::NoInterpreter => {
                "begin it with the program that is to run it, such as `#!/bin/sh`".to_owned()
            }
            Self::Misplaced => "make the `#!` line the first one, with nothing before it".to_owned(),
            Self::ByteOrderMark => format!("save it as UTF-8 without a mark: `sed -i '1s/^\\xEF\\xBB\\xBF//' {path}`"),
            Self::Utf16 => "save it as UTF-8".to_owned(),
            Self::CarriageReturn(_) => format!("convert it: {}", conversion(&path)),
            Self::NotAbsolute(name) => {
                let name = name.rsplit('/').next().unwrap_or(name);
                format!("write its absolute path, or `#!/usr/bin/env {name}` to search `PATH`")
            }
            Self::EnvArguments(arguments) => format!("write `#!/usr/bin/env -S {arguments}`"),
            Self::TooLong => "shorten it, for instance by a link to the interpreter".to_owned(),
            Self::OtherMachine(_) | Self::NoProgram | Self::Foreign(_) => {
                "use a program for x86-64 Linux, or a `copy` step and a `run` step where the guest has a way to run this"
                    .to_owned()
            }
        }
    }
}

/// Returns advice on how to convert line ends permanently.
fn conversion(path: &str) -> String {
    format!("`sed -i 's/\\r$//' {path}`; in git, `*.sh text eol=lf` in .gitattributes keeps it so")
}

/// A fault of a script, and the line of the script that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScriptFinding {
    pub(crate) line: usize,
    pub(crate) fault: ScriptError,
}

impl ScriptFinding {
    fn first(fault: ScriptError) -> Self {
        Self { line: 1, fault }
    }
}

/// Reads the beginning of a script and examines it. Returns a warning where it may fail, to follow `PATH:LINE: `.
///
/// # Errors
/// When the script cannot be read. A fault of the script is part of the result.
pub(crate) fn examine_script(file: File) -> io::Result<Result<Option<(usize, String)>, ScriptFinding>> {
    let mut head = Vec::new();
    file.take(EXAMINED).read_to_end(&mut head)?;
    Ok(examine(&head))
}

fn examine(head: &[u8]) -> Result<Option<(usize, String)>, ScriptFinding> {
    if head.starts_with(HASH_BANG) {
        let interpreter = read_interpreter(head).map_err(ScriptFinding::first)?;
        let relative = (!interpreter.path.starts_with('/')).then(|| (1, warn_of_relative(&interpreter)));
        return Ok(relative.or_else(|| warn_of_line_ends(&interpreter, head)));
    }
    if head.starts_with(ELF) {
        return check_program(head).map(|()| None).map_err(ScriptFinding::first);
    }
    Err(explain(head))
}

/// The interpreter that a `#!` line names.
struct Interpreter {
    path: String,
    /// Name of the program that `env` starts, or of the interpreter itself.
    program: String,
}

fn read_interpreter(head: &[u8]) -> Result<Interpreter, ScriptError> {
    let first = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(&first[HASH_BANG.len()..]);
    if let Some((before, _)) = line.split_once('\r') {
        return Err(ScriptError::CarriageReturn(before.trim().to_owned()));
    }
    if first.len() >= KERNEL_READS {
        return Err(ScriptError::TooLong);
    }
    // The kernel knows no other white space.
    let line = line.trim_matches([' ', '\t']);
    let (path, rest) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let arguments = rest.trim_start_matches([' ', '\t']);
    let name = path.rsplit('/').next().unwrap_or_default();
    if name.is_empty() || (name == "env" && arguments.is_empty()) {
        return Err(ScriptError::NoInterpreter);
    }
    if !path.contains('/') {
        return Err(ScriptError::NotAbsolute(path.to_owned()));
    }
    let program = if name == "env" { env_program(arguments)? } else { name };
    Ok(Interpreter { path: path.to_owned(), program: program.to_owned() })
}

/// Returns the name of the program that `env` starts. Only its option `-S` splits one argument into several.
fn env_program(arguments: &str) -> Result<&str, ScriptError> {
    let words: Vec<&str> = arguments.split_whitespace().collect();
    let splits = words[0].starts_with("--split-string") || (words[0].starts_with('-') && words[0].contains('S'));
    if words.len() > 1 && !splits {
        return Err(ScriptError::EnvArguments(arguments.to_owned()));
    }
    let program = words.iter().find(|word| !word.starts_with('-') && !word.contains('=')).unwrap_or(&words[0]);
    Ok(program.rsplit('/').next().unwrap_or(program))
}

fn warn_of_relative(interpreter: &Interpreter) -> String {
    format!("the interpreter `{}` is looked for from the step's `dir` on", interpreter.path)
}

/// Warns of the first line after the `#!` line that ends with CR LF, where the interpreter does not accept that. Content
/// after a NUL is not text: the script is an archive that unpacks itself.
fn warn_of_line_ends(interpreter: &Interpreter, head: &[u8]) -> Option<(usize, String)> {
    if !SHELLS.contains(&interpreter.program.as_str()) {
        return None;
    }
    let text = head.split(|byte| *byte == 0).next().unwrap_or_default();
    let index = text.split(|byte| *byte == b'\n').position(|line| line.ends_with(b"\r"))?;
    let shell = &interpreter.program;
    Some((index + 1, format!("the line ends with CR LF, and `{shell}` takes the CR for a part of the command")))
}

/// Checks the header of a program: `e_ident`, `e_type` and `e_machine`.
fn check_program(head: &[u8]) -> Result<(), ScriptError> {
    let Some(header) = head.get(..20) else { return Err(ScriptError::NoProgram) };
    let is_little = header[5] == 1;
    let kind = read_u16([header[16], header[17]], is_little);
    let machine = read_u16([header[18], header[19]], is_little);
    // A kernel for x86-64 also runs programs for the i386.
    if !is_little || ![X86_64, I386].contains(&machine) {
        let name = MACHINES.iter().find(|(number, _)| *number == machine).map(|(_, name)| (*name).to_owned());
        return Err(ScriptError::OtherMachine(name.unwrap_or_else(|| format!("machine {machine} of elf(5)"))));
    }
    // Of `e_type`, 2 is `ET_EXEC` and 3 is `ET_DYN`.
    if kind == 2 || kind == 3 { Ok(()) } else { Err(ScriptError::NoProgram) }
}

fn read_u16(bytes: [u8; 2], is_little: bool) -> u16 {
    if is_little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) }
}

/// Explains what a file without a `#!` is.
fn explain(head: &[u8]) -> ScriptFinding {
    let foreign = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, what)| *what);
    let is_binary = head.iter().take(KERNEL_READS).any(|byte| *byte == 0);
    let fault = match foreign {
        _ if head.is_empty() => ScriptError::Empty,
        _ if head.starts_with(UTF8_MARK) => ScriptError::ByteOrderMark,
        _ if UTF16_MARKS.iter().any(|mark| head.starts_with(mark)) => ScriptError::Utf16,
        Some(what) => ScriptError::Foreign(what),
        None if is_binary => ScriptError::Foreign("a binary file of no known kind"),
        None => return find_misplaced(head).unwrap_or(ScriptFinding::first(ScriptError::NoInterpreterLine)),
    };
    ScriptFinding::first(fault)
}

fn find_misplaced(head: &[u8]) -> Option<ScriptFinding> {
    let mut lines = head.split(|byte| *byte == b'\n').take(FIRST_LINES);
    let index = lines.position(|line| line.trim_ascii_start().starts_with(b"#!/"))?;
    Some(ScriptFinding { line: index + 1, fault: ScriptError::Misplaced })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(head: impl AsRef<[u8]>) -> ScriptError {
        examine(head.as_ref()).unwrap_err().fault
    }

    fn warning(head: impl AsRef<[u8]>) -> Option<usize> {
        examine(head.as_ref()).unwrap().map(|(line, _)| line)
    }

    #[test]
    fn s11_scripts_that_the_kernel_runs_pass() {
        for head in [
            "#!/bin/sh\necho hello\n",
            "#!/bin/sh",
            "#! /bin/sh -eu\n",
            "#!/usr/bin/env python3\n",
            "#!/usr/bin/env -S bash -eu\n",
            "#!/usr/bin/env -iS bash -eu\n",
            "#!/usr/bin/env bash \t\n",
            "#!/usr/bin/python3\r\n".replace('\r', "").as_str(),
            "#!/bin/sh\necho \u{fc}\n",
            "#!/usr/bin/python3\nprint(1)\r\n",
        ] {
            assert_eq!(examine(head.as_bytes()), Ok(None), "{head:?}");
        }
        assert_eq!(examine(&[b"#!/bin/sh\ntail -n +3 \"$0\"\nexit\n", &b"\0\r\n\x01\r\n"[..]].concat()), Ok(None));
    }

    #[test]
    fn s11_line_ends_of_windows_are_an_error_where_they_always_fail() {
        assert_eq!(fault("#!/bin/sh\r\necho hello\r\n"), ScriptError::CarriageReturn("/bin/sh".into()));
        assert_eq!(fault("#!/usr/bin/env python3\r\n"), ScriptError::CarriageReturn("/usr/bin/env python3".into()));
        assert_eq!(fault("#!/bin/sh -e\recho hello\r"), ScriptError::CarriageReturn("/bin/sh -e".into()));
        assert_eq!(warning("#!/bin/sh\nset -eu\n\necho hello\r\n"), Some(4));
        assert_eq!(warning("#!/usr/bin/env -S bash -eu\necho hello\r\n"), Some(2));
        let text = ScriptError::CarriageReturn("/bin/sh".into());
        assert!(text.to_string().ends_with("an interpreter named `/bin/sh\\r`"), "{text}");
        assert!(text.remedy(Path::new("a.sh")).contains("sed -i 's/\\r$//' a.sh`"));
        assert!(text.remedy(Path::new("it's a.sh")).contains(r"//' 'it'\''s a.sh'`"));
    }

    #[test]
    fn s11_a_script_without_a_usable_first_line_is_an_error() {
        assert_eq!(fault(""), ScriptError::Empty);
        assert_eq!(fault("echo hello\n"), ScriptError::NoInterpreterLine);
        assert_eq!(fault("# Copyright\necho hello\n"), ScriptError::NoInterpreterLine);
        assert_eq!(fault("#!\necho hello\n"), ScriptError::NoInterpreter);
        assert_eq!(fault("#! \t\necho hello\n"), ScriptError::NoInterpreter);
        assert_eq!(fault("#!/usr/bin/env\n"), ScriptError::NoInterpreter);
        assert_eq!(fault("\u{feff}#!/bin/sh\n"), ScriptError::ByteOrderMark);
        assert_eq!(fault(b"\xff\xfe#\0!\0/\0"), ScriptError::Utf16);
        let misplaced = |line| Err(ScriptFinding { line, fault: ScriptError::Misplaced });
        assert_eq!(examine(b"\n#!/bin/sh\n"), misplaced(2));
        assert_eq!(examine(b" #!/bin/sh\n"), misplaced(1));
        assert_eq!(examine(b"# by somebody\n#\n#!/bin/sh\n"), misplaced(3));
    }

    #[test]
    fn s11_an_interpreter_must_be_one_that_the_kernel_finds() {
        assert_eq!(fault("#!python3\n"), ScriptError::NotAbsolute("python3".into()));
        assert_eq!(fault("#! sh -e\n"), ScriptError::NotAbsolute("sh".into()));
        assert_eq!(warning("#!venv/bin/python\n"), Some(1), "it may be there, in the step's `dir`");
        for arguments in ["bash -eu", "-i bash", "A=1 bash"] {
            let head = format!("#!/usr/bin/env {arguments}\n");
            assert_eq!(fault(head), ScriptError::EnvArguments(arguments.into()));
        }
        assert_eq!(fault(format!("#!/{}\n", "a/".repeat(126))), ScriptError::NoInterpreter);
        assert_eq!(fault(format!("#!/{}\n", "a/".repeat(127) + "b")), ScriptError::TooLong);
    }

    #[test]
    fn s11_programs_are_for_the_machine_of_the_guest() {
        let program = |machine: u16, kind: u16| {
            let mut head = [ELF, &[2, 1, 1], &[0; 9]].concat();
            head.extend([kind.to_le_bytes(), machine.to_le_bytes()].concat());
            head
        };
        assert_eq!(examine(&program(X86_64, 2)), Ok(None));
        assert_eq!(examine(&program(I386, 3)), Ok(None));
        assert_eq!(fault(program(183, 2)), ScriptError::OtherMachine("64-bit Arm".into()));
        assert_eq!(fault(program(258, 2)), ScriptError::OtherMachine("machine 258 of elf(5)".into()));
        assert_eq!(fault(program(X86_64, 1)), ScriptError::NoProgram);
        assert_eq!(fault(ELF), ScriptError::NoProgram);
        assert_eq!(fault(b"MZ\x90\0"), ScriptError::Foreign("a program for Windows"));
        assert_eq!(fault(b"\x01\0\x02"), ScriptError::Foreign("a binary file of no known kind"));
        // The test program itself is one that this machine runs.
        let own = File::open("/proc/self/exe").unwrap();
        assert_eq!(examine_script(own).unwrap(), Ok(None));
    }
}
