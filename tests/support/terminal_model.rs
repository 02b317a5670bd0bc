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
    /// Encodings of keys, by xterm's number of the resource.
    key_formats: BTreeSet<String>,
    kitty_keys: usize,
    is_vt52: bool,
    has_eight_bits: bool,
    is_protected: bool,
    link: String,
    lights: String,
    locator: String,
    status_line: String,
    writes_to_status_line: bool,
    is_printing: bool,
    is_auto_printing: bool,
    side_margins: Option<String>,
    pointer: String,
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
            key_formats: BTreeSet::new(),
            kitty_keys: 0,
            is_vt52: false,
            has_eight_bits: false,
            is_protected: false,
            link: String::new(),
            lights: String::new(),
            locator: String::new(),
            status_line: String::new(),
            writes_to_status_line: false,
            is_printing: false,
            is_auto_printing: false,
            side_margins: None,
            pointer: String::new(),
        }
    }
}

/// A terminal and its cursor.
#[derive(Debug, Default)]
pub struct TerminalModel {
    pub modes: TerminalModes,
    /// How many sequences were obeyed.
    pub obeyed: usize,
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
        self.obeyed += 1;
        match rest.next() {
            Some('<') => self.modes.is_vt52 = false,
            // A VT52 has sequences of one letter alone, none of which changes a mode.
            _ if self.modes.is_vt52 => {}
            Some('[') => self.control(rest),
            _ if self.modes.is_printing => {}
            Some(' ') => self.modes.has_eight_bits = rest.next() == Some('G'),
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
            "8" => value.trim_start_matches(';').clone_into(&mut self.modes.link),
            "22" => value.clone_into(&mut self.modes.pointer),
            "104" => self.modes.colours.retain(|colour| colour != "4"),
            "105" => drop(self.modes.colours.remove("5")),
            "110" | "111" | "112" | "113" | "114" | "117" | "119" => {
                self.modes.colours.remove(&number.replacen("11", "1", 1));
            }
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
            ("4" | "5", 'i') => modes.is_printing = parameters == "5",
            // The printer gets the sequence.
            (_, end) if modes.is_printing && (parameters, end) != ("?2", 'l') => {}
            ("?4" | "?5", 'i') => modes.is_auto_printing = parameters == "?5",
            (line, '}') => modes.writes_to_status_line = line == "1$",
            (line, '~') => line.trim_matches(['0', '$']).clone_into(&mut modes.status_line),
            (locator, 'z') => locator.trim_matches(['0', '\'']).clone_into(&mut modes.locator),
            (margins, 's') => modes.side_margins = Some(margins.to_owned()),
            (_, 'h' | 'l') => self.set_modes(parameters, end == 'h'),
            ("" | "0", 'm') => modes.is_plain = true,
            (keys, 'm') if keys.starts_with('>') => {
                let (resource, value) = keys.split_once(';').unwrap_or((keys, ""));
                if value.is_empty() {
                    modes.key_formats.remove(resource);
                } else {
                    modes.key_formats.insert(resource.to_owned());
                }
            }
            (_, 'm') => modes.is_plain = false,
            ("", 'r') => modes.margins = None,
            (margins, 'r') => modes.margins = Some(margins.to_owned()),
            ("22;0", 't') => modes.titles.push(modes.title.clone()),
            ("23;0", 't') => modes.title = modes.titles.pop().unwrap_or_default(),
            (protection, 'q') if protection.ends_with('"') => modes.is_protected = protection == "1\"",
            (lights, 'q') if !lights.ends_with(' ') => lights.trim_matches('0').clone_into(&mut modes.lights),
            (style, 'q') => style.trim().trim_matches('0').clone_into(&mut modes.cursor_style),
            ("3", 'g') => modes.tabs.clear(),
            (column, 'G') => self.column = column.parse().unwrap_or(1),
            (keys, 'u') if keys.starts_with(['>', '=']) => modes.kitty_keys += 1,
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
                2 => self.modes.is_vt52 = !on,
                69 if !on => {
                    self.modes.side_margins = None;
                    set(&mut self.modes.private, mode, on);
                }
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
