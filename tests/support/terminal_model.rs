//! A small terminal: what its modes are after some output, as xterm's ctlseqs has them. It draws nothing.

use std::collections::BTreeSet;

/// The modes, which are equal when all of them are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a mode of its own")]
pub struct TerminalModes {
    /// DEC's private modes that are set.
    private: BTreeSet<u16>,
    /// ANSI modes that are set.
    ansi: BTreeSet<u16>,
    is_plain: bool,
    charsets: [char; 4],
    is_shifted: bool,
    is_utf8: bool,
    has_keypad: bool,
    margins: Option<String>,
    is_alternate: bool,
    title: String,
    titles: Vec<String>,
    cursor_style: String,
    colours: BTreeSet<String>,
    tabs: BTreeSet<usize>,
    other_keys: String,
    kitty_keys: usize,
}

impl Default for TerminalModes {
    fn default() -> Self {
        Self {
            private: BTreeSet::from([7, 8, 25]),
            ansi: BTreeSet::from([12]),
            is_plain: true,
            charsets: ['B'; 4],
            is_shifted: false,
            is_utf8: true,
            has_keypad: false,
            margins: None,
            is_alternate: false,
            title: "before".into(),
            titles: Vec::new(),
            cursor_style: String::new(),
            colours: BTreeSet::new(),
            tabs: (9..400).step_by(8).collect(),
            other_keys: String::new(),
            kitty_keys: 0,
        }
    }
}

/// A terminal and its cursor.
#[derive(Debug, Default)]
pub struct TerminalModel {
    pub modes: TerminalModes,
    /// Whether something on the screen was erased.
    pub is_erased: bool,
    column: usize,
    saved: [Option<TerminalModes>; 2],
}

impl TerminalModel {
    /// Takes all that a program has written.
    pub fn feed(&mut self, output: &str) {
        let mut rest = output.chars();
        while let Some(c) = rest.next() {
            match c {
                '\u{1b}' => self.escape(&mut rest),
                '\u{e}' | '\u{f}' => self.modes.is_shifted = c == '\u{e}',
                '\r' => self.column = 1,
                _ => {}
            }
        }
    }

    fn escape(&mut self, rest: &mut std::str::Chars<'_>) {
        match rest.next() {
            Some('[') => self.control(rest),
            Some(']') => self.command(rest),
            Some('c') => (self.modes, self.is_erased) = (TerminalModes::default(), true),
            Some(set @ ('(' | ')' | '*' | '+')) => {
                let at = "()*+".find(set).expect("one of them");
                self.modes.charsets[at] = rest.next().unwrap_or('B');
            }
            Some('%') => self.modes.is_utf8 = rest.next() == Some('G'),
            Some(keypad @ ('=' | '>')) => self.modes.has_keypad = keypad == '=',
            Some('H') => drop(self.modes.tabs.insert(self.column)),
            Some('7') => self.saved[usize::from(self.modes.is_alternate)] = Some(self.modes.clone()),
            Some('8') => self.restore_cursor(),
            _ => {}
        }
    }

    /// What is saved with the cursor (DECSC).
    fn restore_cursor(&mut self) {
        let Some(saved) = self.saved[usize::from(self.modes.is_alternate)].clone() else { return };
        let modes = &mut self.modes;
        (modes.is_plain, modes.charsets, modes.is_shifted) = (saved.is_plain, saved.charsets, saved.is_shifted);
        for mode in [6, 7] {
            set(&mut modes.private, mode, saved.private.contains(&mode));
        }
    }

    fn command(&mut self, rest: &mut std::str::Chars<'_>) {
        let mut text = String::new();
        loop {
            match rest.next() {
                None | Some('\u{18}') => return,
                Some('\u{7}') => break,
                Some('\u{1b}') => {
                    rest.next();
                    break;
                }
                Some(c) => text.push(c),
            }
        }
        let (number, value) = text.split_once(';').unwrap_or((&text, ""));
        match number {
            "0" | "2" => value.clone_into(&mut self.modes.title),
            "104" => self.modes.colours.retain(|colour| colour != "4"),
            "110" | "111" | "112" => drop(self.modes.colours.remove(&number.replacen("11", "1", 1))),
            _ => drop(self.modes.colours.insert(number.to_owned())),
        }
    }

    fn control(&mut self, rest: &mut std::str::Chars<'_>) {
        let mut parameters = String::new();
        for c in rest.by_ref() {
            match c {
                ' '..='?' => parameters.push(c),
                '\u{18}' => return,
                end => return self.end_control(&parameters, end),
            }
        }
    }

    fn end_control(&mut self, parameters: &str, end: char) {
        let modes = &mut self.modes;
        match (parameters, end) {
            (_, 'h' | 'l') => self.set_modes(parameters, end == 'h'),
            ("" | "0", 'm') => modes.is_plain = true,
            (keys, 'm') if keys.starts_with('>') => keys.trim_start_matches(">4").clone_into(&mut modes.other_keys),
            (_, 'm') => modes.is_plain = false,
            ("", 'r') => modes.margins = None,
            (margins, 'r') => modes.margins = Some(margins.to_owned()),
            ("22;0", 't') => modes.titles.push(modes.title.clone()),
            ("23;0", 't') => modes.title = modes.titles.pop().unwrap_or_default(),
            (style, 'q') => style.trim().trim_matches('0').clone_into(&mut modes.cursor_style),
            ("3", 'g') => modes.tabs.clear(),
            (column, 'G') => self.column = column.parse().unwrap_or(1),
            (keys, 'u') if keys.starts_with('>') => modes.kitty_keys += 1,
            (keys, 'u') if keys.starts_with('<') => {
                modes.kitty_keys = modes.kitty_keys.saturating_sub(keys[1..].parse().unwrap_or(1));
            }
            (_, 'J' | 'K') => self.is_erased = true,
            _ => {}
        }
    }

    fn set_modes(&mut self, parameters: &str, on: bool) {
        let Some(private) = parameters.strip_prefix('?') else {
            numbers(parameters).for_each(|mode| set(&mut self.modes.ansi, mode, on));
            return;
        };
        for mode in numbers(private) {
            match mode {
                1049 if on => {
                    self.saved[0] = Some(self.modes.clone());
                    self.modes.is_alternate = true;
                }
                1049 => {
                    self.modes.is_alternate = false;
                    self.restore_cursor();
                }
                _ => set(&mut self.modes.private, mode, on),
            }
        }
    }
}

fn numbers(parameters: &str) -> impl Iterator<Item = u16> {
    parameters.split(';').filter_map(|number| number.parse().ok())
}

fn set(modes: &mut BTreeSet<u16>, mode: u16, on: bool) {
    if on {
        modes.insert(mode);
    } else {
        modes.remove(&mode);
    }
}
