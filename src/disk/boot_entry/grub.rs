//! Reads the menu of GRUB 2 from its script (GRUB manual, 6.3 and 16).
//!
//! No command of the script is carried out. Its variables and conditions are evaluated as far as the disk determines them: a
//! variable is unknown if something outside the disk may have set it, and commands below an unknown condition may or may not
//! be executed.

use std::collections::HashMap;

use super::command_line::{KernelCommandLine, LineRoot, UNKNOWN};
use super::grub_script::{Script, Statement, parse_script};
use super::loader_entry::LoaderEntry;
use super::{BootEntry, BootMenu};

/// The most statements that are evaluated, and variables that are copied for an entry.
const MAX_WORK: usize = 100_000;
/// The deepest nesting of files and functions.
const MAX_DEPTH: usize = 16;
/// The environment block, in the script's folder.
const ENVIRONMENT: &str = "grubenv";
/// Variables that scripts keep in the environment block. They are empty if the block does not contain them.
const ENVIRONMENT_VARIABLES: [&str; 13] = [
    "next_entry",
    "saved_entry",
    "prev_saved_entry",
    "prev_entry",
    "boot_once",
    "boot_success",
    "boot_counter",
    "boot_indeterminate",
    "menu_auto_hide",
    "recordfail",
    "initrdfail",
    "env_block",
    "kernelopts",
];

/// Access to the files that a script of GRUB reads from the disk.
pub(super) struct GrubFiles<'f> {
    /// The folder of the script.
    pub(super) folder: &'f str,
    /// Reads a file of the script's file system.
    pub(super) read: &'f dyn Fn(&str) -> Option<String>,
    /// The entries that the command `blscfg` adds to the menu, in its order.
    pub(super) loader_entries: &'f [LoaderEntry],
}

/// The menu of a script, and whether it includes the entries of the Boot Loader Specification.
#[derive(Debug)]
pub(super) struct GrubMenu {
    pub(super) menu: BootMenu,
    pub(super) has_loader_entries: bool,
}

/// Returns the menu of the script in this folder; `None` if there is none, or it only loads a file elsewhere.
pub(super) fn read_grub(files: &GrubFiles<'_>) -> Option<GrubMenu> {
    let text = (files.read)(&format!("{}/grub.cfg", files.folder))?;
    let mut shell = GrubShell::new(files);
    shell.run_text(&text, true);
    let has_loader_entries = shell.has_loader_entries;
    let default = shell.value("default");
    let entries = shell.finish();
    let has_any = entries.iter().any(|entry| !entry.is_foreign);
    has_any.then_some(GrubMenu { menu: BootMenu { entries, default }, has_loader_entries })
}

/// The value of a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    True,
    False,
    Unknown,
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Truth::True } else { Truth::False }
    }
}

impl Truth {
    fn negate(self) -> Self {
        match self {
            Truth::True => Truth::False,
            Truth::False => Truth::True,
            Truth::Unknown => Truth::Unknown,
        }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Truth::False, _) | (_, Truth::False) => Truth::False,
            (Truth::True, Truth::True) => Truth::True,
            _ => Truth::Unknown,
        }
    }
}

/// An entry whose commands are evaluated when the script has ended, as GRUB does when the entry is chosen.
#[derive(Debug, Clone)]
struct PendingEntry {
    names: Vec<String>,
    content: PendingContent,
    is_certain: bool,
}

#[derive(Debug, Clone)]
enum PendingContent {
    Block(Script),
    Line(KernelCommandLine),
    /// The words of a kernel command line.
    Words(Vec<String>),
    /// The content of a file that kiln does not find.
    Foreign,
}

/// The state of a script that is evaluated.
#[derive(Clone)]
struct GrubShell<'f> {
    files: &'f GrubFiles<'f>,
    /// The values of variables; `None` if a value is not known.
    variables: HashMap<String, Option<String>>,
    functions: HashMap<String, Script>,
    entries: Vec<PendingEntry>,
    has_loader_entries: bool,
    /// The script may have ended already.
    is_doubtful: bool,
    /// Another menu has replaced this one.
    is_over: bool,
    budget: usize,
    depth: usize,
}

impl<'f> GrubShell<'f> {
    fn new(files: &'f GrubFiles<'f>) -> Self {
        let known = ENVIRONMENT_VARIABLES.iter().chain(&["default"]).map(|name| (*name, ""));
        let folders = ["prefix", "config_directory"].map(|name| (name, files.folder));
        let known = known.chain(folders).chain([("menuentry_id_option", "--id")]);
        Self {
            files,
            variables: known.map(|(name, value)| (name.to_owned(), Some(value.to_owned()))).collect(),
            functions: HashMap::new(),
            entries: Vec::new(),
            has_loader_entries: false,
            is_doubtful: false,
            is_over: false,
            budget: MAX_WORK,
            depth: 0,
        }
    }

    fn run_text(&mut self, text: &str, is_certain: bool) {
        match parse_script(text) {
            Some(script) => self.run(&script, is_certain),
            None => self.give_up(),
        }
    }

    fn run(&mut self, script: &[Statement], is_certain: bool) {
        if self.depth >= MAX_DEPTH {
            return self.give_up();
        }
        self.depth += 1;
        for statement in script {
            if self.is_over {
                break;
            }
            let Some(budget) = self.budget.checked_sub(1) else {
                self.give_up();
                break;
            };
            self.budget = budget;
            self.run_statement(statement, is_certain && !self.is_doubtful);
        }
        self.depth -= 1;
    }

    fn run_statement(&mut self, statement: &Statement, is_certain: bool) {
        match statement {
            Statement::Command(words) => self.run_command(words, is_certain),
            Statement::Choice { branches, otherwise } => self.run_choice(branches, otherwise, is_certain),
            Statement::Loop { variable, body } => {
                if let Some(variable) = variable {
                    self.assign(variable, None, true);
                }
                // The second pass uses the values that the first has assigned.
                self.run(body, false);
                self.run(body, false);
            }
            Statement::Function { name, body } => drop(self.functions.insert(name.clone(), body.clone())),
            Statement::Block { words, body } => self.add_block(words, body, is_certain),
        }
    }

    fn run_choice(&mut self, branches: &[(Script, Script)], otherwise: &Script, mut is_certain: bool) {
        for (condition, body) in branches {
            match self.evaluate(condition) {
                Truth::True => return self.run(body, is_certain),
                Truth::False => {}
                Truth::Unknown => {
                    is_certain = false;
                    self.run(body, false);
                }
            }
        }
        self.run(otherwise, is_certain);
    }

    fn run_command(&mut self, words: &[String], is_certain: bool) {
        let Some((first, arguments)) = words.split_first() else { return };
        if let Some((name, value)) = split_assignment(first) {
            return self.assign(name, self.expand(value), is_certain);
        }
        match first.as_str() {
            "set" => {
                if let Some((name, value)) = arguments.first().and_then(|word| split_assignment(word)) {
                    self.assign(name, self.expand(value), is_certain);
                }
            }
            "unset" => arguments.iter().for_each(|name| self.assign(name, Some(String::new()), is_certain)),
            "load_env" => self.load_environment(arguments, is_certain),
            "source" | "." => self.run_file(arguments.first(), is_certain),
            "configfile" | "normal" => {
                if is_certain {
                    self.entries.clear();
                }
                self.run_file(arguments.first(), is_certain);
                self.is_over |= is_certain;
                self.is_doubtful = true;
            }
            "blscfg" => self.add_loader_entries(is_certain),
            "exit" | "return" | "halt" | "reboot" | "boot" | "normal_exit" => self.is_doubtful = true,
            "eval" => self.give_up(),
            "increment" | "decrement" | "read" => arguments.iter().for_each(|name| self.assign(name, None, is_certain)),
            "chainloader" | "multiboot" | "multiboot2" => {
                let line = KernelCommandLine { root: LineRoot::Chained, ..KernelCommandLine::default() };
                self.add_unnamed(PendingContent::Line(line), true);
            }
            _ if first.starts_with("linux") || is_xen_module(first, arguments) => {
                self.add_unnamed(PendingContent::Words(arguments.to_vec()), is_certain);
            }
            _ => self.run_other(first, arguments, is_certain),
        }
    }

    /// Runs a function, or forgets the variables that a command sets.
    fn run_other(&mut self, name: &str, arguments: &[String], is_certain: bool) {
        if let Some(function) = self.functions.get(name).cloned() {
            return self.run(&function, is_certain);
        }
        if name.starts_with("search.") {
            self.assign("root", None, is_certain);
        }
        let mut arguments = arguments.iter().map(String::as_str);
        while let Some(argument) = arguments.next() {
            let target = match argument.split_once('=') {
                Some(("--set", target)) => target,
                None if argument == "--set" || argument == "-s" => arguments.next().unwrap_or_default(),
                _ => continue,
            };
            let target = target.rsplit(':').next().unwrap_or(target);
            self.assign(target, None, is_certain);
        }
    }

    /// Sets a variable. If it is not certain that the assignment is executed, the value is known only if it was the same
    /// before.
    fn assign(&mut self, name: &str, value: Option<String>, is_certain: bool) {
        let is_same = value.is_some() && self.variables.get(name) == Some(&value);
        let value = if is_certain || is_same { value } else { None };
        self.variables.insert(name.to_owned(), value);
    }

    fn value(&self, name: &str) -> Option<String> {
        match self.variables.get(name) {
            Some(value) => value.clone(),
            None => name.starts_with("feature_").then(|| "y".to_owned()),
        }
    }

    /// Expands a word, whose quotes are removed; `None` if it contains variables that are not known.
    fn expand(&self, word: &str) -> Option<String> {
        Some(self.expand_known(word)).filter(|text| !text.contains(UNKNOWN))
    }

    /// Expands a word, whose quotes are removed, with [`UNKNOWN`] for variables that are not known.
    fn expand_known(&self, word: &str) -> String {
        let mut text = String::new();
        let mut quote = None;
        let mut chars = word.chars().peekable();
        while let Some(c) = chars.next() {
            match (quote, c) {
                (Some('\''), '\'') | (Some('"'), '"') => quote = None,
                (Some('\''), _) => text.push(c),
                (None, '\'' | '"') => quote = Some(c),
                (_, '\\') => text.extend(chars.next()),
                (_, '$') => {
                    let name = take_name(&mut chars);
                    text.push_str(&self.value(&name).unwrap_or_else(|| UNKNOWN.to_string()));
                }
                _ => text.push(c),
            }
        }
        text
    }

    /// Returns the path of a file in the file system of the script; `None` if it may be in another one.
    fn locate(&self, word: &str) -> Option<String> {
        let path = self.expand(word)?;
        let is_beside = path.strip_prefix(self.files.folder).is_some_and(|rest| rest.starts_with('/'));
        let has_own_root = !self.variables.contains_key("root");
        (is_beside && word.trim_start_matches('"').starts_with('$') || path.starts_with('/') && has_own_root)
            .then_some(path)
    }

    /// Runs the script in a file. A file that does not exist has no effect.
    fn run_file(&mut self, word: Option<&String>, is_certain: bool) {
        let Some(path) = word.and_then(|word| self.locate(word)) else {
            self.add_unnamed(PendingContent::Foreign, false);
            return self.assign("default", None, false);
        };
        if let Some(text) = (self.files.read)(&path) {
            self.run_text(&text, is_certain);
        }
    }

    fn load_environment(&mut self, arguments: &[String], is_certain: bool) {
        let named = arguments.iter().enumerate().find_map(|(index, word)| match word.as_str() {
            "-f" | "--file" => arguments.get(index + 1).map(String::as_str),
            _ => word.strip_prefix("--file="),
        });
        let path = named.map_or_else(|| Some(format!("{}/{ENVIRONMENT}", self.files.folder)), |word| self.locate(word));
        let Some(path) = path else {
            return self.variables.values_mut().for_each(|value| *value = None);
        };
        let text = (self.files.read)(&path).unwrap_or_default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, value)) = line.split_once('=') {
                self.assign(name, Some(value.to_owned()), is_certain);
            }
        }
    }

    fn add_loader_entries(&mut self, is_certain: bool) {
        self.has_loader_entries = true;
        let pending = self.files.loader_entries.iter().map(|entry| PendingEntry {
            names: entry.names(),
            content: entry.options.as_ref().map_or_else(
                || PendingContent::Line(KernelCommandLine::unknown()),
                |options| PendingContent::Words(options.split_whitespace().map(str::to_owned).collect()),
            ),
            is_certain,
        });
        self.entries.extend(pending);
    }

    fn add_unnamed(&mut self, content: PendingContent, is_certain: bool) {
        self.entries.push(PendingEntry { names: Vec::new(), content, is_certain });
    }

    /// Adds an entry that may have any root, and marks the default as unknown.
    fn give_up(&mut self) {
        self.add_unnamed(PendingContent::Line(KernelCommandLine::unknown()), false);
        self.assign("default", None, false);
        self.is_doubtful = true;
    }

    fn add_block(&mut self, words: &[String], body: &Script, is_certain: bool) {
        if !matches!(words.first().map(String::as_str), Some("menuentry" | "submenu")) {
            return self.run(body, false);
        }
        let names = self.entry_names(words);
        self.entries.push(PendingEntry { names, content: PendingContent::Block(body.clone()), is_certain });
    }

    /// Returns the title and the identifier of an entry, as far as they are known.
    fn entry_names(&self, words: &[String]) -> Vec<String> {
        let mut names: Vec<String> = words.get(1).and_then(|title| self.expand(title)).into_iter().collect();
        for (index, word) in words.iter().enumerate() {
            let id = match word.as_str() {
                "--id" | "$menuentry_id_option" | "${menuentry_id_option}" => words.get(index + 1).map(String::as_str),
                _ => word.strip_prefix("--id="),
            };
            names.extend(id.and_then(|id| self.expand(id)));
        }
        names
    }

    fn evaluate(&mut self, condition: &[Statement]) -> Truth {
        let [Statement::Command(words)] = condition else {
            self.run(condition, false);
            return Truth::Unknown;
        };
        match words.first().map(String::as_str) {
            Some("[") => self.test(words.get(1..words.len() - 1).unwrap_or_default()),
            Some("test") => self.test(&words[1..]),
            Some("true") => Truth::True,
            Some("false") => Truth::False,
            _ => {
                self.run(condition, false);
                Truth::Unknown
            }
        }
    }

    /// Evaluates the expression of `[`: `-o` binds less tightly than `-a`.
    fn test(&self, words: &[String]) -> Truth {
        if let Some(at) = words.iter().position(|word| word == "-o") {
            return self.test(&words[..at]).negate().and(self.test(&words[at + 1..]).negate()).negate();
        }
        if let Some(at) = words.iter().position(|word| word == "-a") {
            return self.test(&words[..at]).and(self.test(&words[at + 1..]));
        }
        match words {
            [not, rest @ ..] if not == "!" => self.test(rest).negate(),
            [word] => self.is_set(word),
            [operator, word] => match operator.as_str() {
                "-n" => self.is_set(word),
                "-z" => self.is_set(word).negate(),
                "-e" | "-f" | "-s" => self.is_file(word),
                _ => Truth::Unknown,
            },
            [left, operator, right] => self.compare(left, operator, right),
            _ => Truth::Unknown,
        }
    }

    fn is_set(&self, word: &str) -> Truth {
        self.expand(word).map_or(Truth::Unknown, |text| Truth::from(!text.is_empty()))
    }

    fn is_file(&self, word: &str) -> Truth {
        self.locate(word).map_or(Truth::Unknown, |path| Truth::from((self.files.read)(&path).is_some()))
    }

    fn compare(&self, left: &str, operator: &str, right: &str) -> Truth {
        let (Some(left), Some(right)) = (self.expand(left), self.expand(right)) else { return Truth::Unknown };
        let numbers = left.parse::<i64>().ok().zip(right.parse::<i64>().ok());
        match (operator, numbers) {
            ("=" | "==", _) => Truth::from(left == right),
            ("!=", _) => Truth::from(left != right),
            ("-eq", Some((left, right))) => Truth::from(left == right),
            ("-ne", Some((left, right))) => Truth::from(left != right),
            _ => Truth::Unknown,
        }
    }

    /// Evaluates the commands of all entries.
    fn finish(mut self) -> Vec<BootEntry> {
        let pending = std::mem::take(&mut self.entries);
        pending.into_iter().map(|entry| self.finish_entry(entry)).collect()
    }

    fn finish_entry(&mut self, PendingEntry { names, content, is_certain }: PendingEntry) -> BootEntry {
        let mut entry = BootEntry { names, is_certain, ..BootEntry::default() };
        match content {
            PendingContent::Line(line) => entry.line = line,
            PendingContent::Foreign => {
                entry.line = KernelCommandLine::unknown();
                entry.is_foreign = true;
            }
            PendingContent::Words(words) => {
                let words: Vec<String> = words.iter().map(|word| self.expand_known(word)).collect();
                entry.line = KernelCommandLine::parse(&words.join(" "));
            }
            PendingContent::Block(body) => {
                self.budget = self.budget.saturating_sub(self.variables.len() + self.functions.len());
                if self.budget == 0 {
                    entry.line = KernelCommandLine::unknown();
                    return entry;
                }
                let mut shell = self.clone();
                shell.is_doubtful = false;
                shell.is_over = false;
                shell.depth += 1;
                shell.run(&body, true);
                self.budget = shell.budget;
                entry.children = shell.finish();
            }
        }
        entry
    }
}

/// Returns whether a command loads the Linux kernel that Xen starts.
fn is_xen_module(command: &str, arguments: &[String]) -> bool {
    matches!(command, "module" | "module2") && arguments.iter().any(|word| word.starts_with("root="))
}

/// Splits `name=value` into the name and the value.
fn split_assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.is_empty();
    is_name.then_some((name, value))
}

/// Reads the name of a variable, after its `$`.
fn take_name(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    if chars.next_if_eq(&'{').is_some() {
        return chars.by_ref().take_while(|c| *c != '}').collect();
    }
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == '?') {
        name.push(c);
    }
    name
}

#[cfg(test)]
mod tests;
