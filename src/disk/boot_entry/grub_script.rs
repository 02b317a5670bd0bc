//! Parses the scripts of GRUB 2 (GRUB manual, 6.3, "Writing full configuration files directly").

use std::iter::Peekable;
use std::rc::Rc;
use std::vec::IntoIter;

/// The deepest nesting that is followed.
const MAX_DEPTH: usize = 32;

/// Statements, which several owners may share.
pub(super) type Script = Rc<[Statement]>;

/// A statement. Its words are unexpanded and keep their quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Statement {
    /// A command and its arguments.
    Command(Vec<String>),
    /// `if`: conditions with their bodies, and the body of `else`.
    Choice { branches: Vec<(Script, Script)>, otherwise: Script },
    /// `for` with the name of its variable, `while` or `until`.
    Loop { variable: Option<String>, body: Script },
    /// The definition of a function.
    Function { name: String, body: Script },
    /// A command with a block: `menuentry` or `submenu`.
    Block { words: Vec<String>, body: Script },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// A newline or a semicolon.
    End,
    Open,
    Close,
}

/// Parses a script; `None` if it is malformed or nested too deeply.
pub(super) fn parse_script(text: &str) -> Option<Script> {
    let mut parser = ScriptParser { tokens: split_tokens(text).into_iter().peekable(), depth: 0 };
    parser.parse_block(&[]).map(|(script, _)| script)
}

fn split_tokens(text: &str) -> Vec<Token> {
    let mut lexer = ScriptLexer::default();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (lexer.quote, c) {
            (Some('\''), '\\') => lexer.push(c),
            (_, '\\') => lexer.push_escaped(chars.next()),
            (Some(quote), _) => {
                lexer.push(c);
                lexer.quote = (c != quote).then_some(quote);
            }
            (None, '\'' | '"') => {
                lexer.push(c);
                lexer.quote = Some(c);
            }
            (None, '#') if lexer.word.is_none() => {
                chars.find(|c| *c == '\n');
                lexer.tokens.push(Token::End);
            }
            (None, '\n' | ';') => {
                lexer.end_word();
                lexer.tokens.push(Token::End);
            }
            (None, _) if c.is_whitespace() => lexer.end_word(),
            (None, _) => lexer.push(c),
        }
    }
    lexer.end_word();
    lexer.tokens
}

#[derive(Default)]
struct ScriptLexer {
    tokens: Vec<Token>,
    word: Option<String>,
    quote: Option<char>,
}

impl ScriptLexer {
    fn push(&mut self, c: char) {
        self.word.get_or_insert_default().push(c);
    }

    /// Adds an escaped character with its backslash; an escaped newline continues the line.
    fn push_escaped(&mut self, c: Option<char>) {
        if let Some(c) = c.filter(|c| *c != '\n') {
            self.push('\\');
            self.push(c);
        }
    }

    fn end_word(&mut self) {
        let token = self.word.take().map(|word| match word.as_str() {
            "{" => Token::Open,
            "}" => Token::Close,
            _ => Token::Word(word),
        });
        self.tokens.extend(token);
    }
}

struct ScriptParser {
    tokens: Peekable<IntoIter<Token>>,
    depth: usize,
}

impl ScriptParser {
    /// Parses statements up to one of these words, and returns them with that word; up to the end of the script if `ends` is
    /// empty.
    fn parse_block(&mut self, ends: &[&str]) -> Option<(Script, String)> {
        self.depth += 1;
        let mut statements = Vec::new();
        let end = loop {
            match self.tokens.next() {
                _ if self.depth > MAX_DEPTH => return None,
                None if ends.is_empty() => break String::new(),
                Some(Token::End) => {}
                Some(Token::Open) => statements.extend(self.parse_block(&["}"])?.0.iter().cloned()),
                Some(Token::Close) if ends.contains(&"}") => break "}".to_owned(),
                None | Some(Token::Close) => return None,
                Some(Token::Word(word)) if ends.contains(&word.as_str()) => break word,
                Some(Token::Word(word)) => statements.push(self.parse_statement(word)?),
            }
        };
        self.depth -= 1;
        Some((statements.into(), end))
    }

    fn parse_statement(&mut self, first: String) -> Option<Statement> {
        match first.as_str() {
            "if" => self.parse_choice(),
            "for" => {
                let Some(Token::Word(name)) = self.tokens.next() else { return None };
                self.parse_block(&["do"])?;
                Some(Statement::Loop { variable: Some(name), body: self.parse_block(&["done"])?.0 })
            }
            "while" | "until" => {
                let condition = self.parse_block(&["do"])?.0;
                let body = self.parse_block(&["done"])?.0;
                let body = condition.iter().chain(body.iter()).cloned().collect();
                Some(Statement::Loop { variable: None, body })
            }
            "function" => {
                let (Some(Token::Word(name)), Some(Token::Open)) = (self.tokens.next(), self.tokens.next()) else {
                    return None;
                };
                Some(Statement::Function { name, body: self.parse_block(&["}"])?.0 })
            }
            "then" | "elif" | "else" | "fi" | "do" | "done" => None,
            _ => self.parse_command(first),
        }
    }

    fn parse_choice(&mut self) -> Option<Statement> {
        let mut branches = Vec::new();
        loop {
            let condition = self.parse_block(&["then"])?.0;
            let (body, end) = self.parse_block(&["elif", "else", "fi"])?;
            branches.push((condition, body));
            match end.as_str() {
                "elif" => {}
                "else" => {
                    let otherwise = self.parse_block(&["fi"])?.0;
                    return Some(Statement::Choice { branches, otherwise });
                }
                _ => return Some(Statement::Choice { branches, otherwise: Script::default() }),
            }
        }
    }

    fn parse_command(&mut self, first: String) -> Option<Statement> {
        let mut words = vec![first];
        while let Some(Token::Word(word)) = self.tokens.next_if(|token| matches!(token, Token::Word(_))) {
            words.push(word);
        }
        if self.tokens.next_if_eq(&Token::Open).is_some() {
            let body = self.parse_block(&["}"])?.0;
            return Some(Statement::Block { words, body });
        }
        Some(Statement::Command(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str]) -> Statement {
        Statement::Command(words.iter().map(|word| (*word).to_owned()).collect())
    }

    #[test]
    fn quotes_comments_and_continued_lines_are_known() {
        let script = parse_script("# a\nset a='b # c'; echo \"d \\\" ; e\" \\\n f#g # h\n").unwrap();
        assert_eq!(script[..], [command(&["set", "a='b # c'"]), command(&["echo", "\"d \\\" ; e\"", "f#g"])]);
    }

    #[test]
    fn control_flow_nests() {
        let text = "if [ a ]; then\nx\nelif y; then { z; }\nelse\nfor S in a b; do w; done\nfi\nfunction f { v }\n\
            menuentry 'm' --id i {\n linux /l\n}\n";
        let script = parse_script(text).unwrap();
        assert_eq!(script.len(), 3);
        let Statement::Choice { branches, otherwise } = &script[0] else { panic!("{script:?}") };
        assert_eq!((branches.len(), &branches[1].1[..]), (2, &[command(&["z"])][..]));
        assert_eq!(otherwise[..], [Statement::Loop { variable: Some("S".into()), body: [command(&["w"])].into() }]);
        assert!(matches!(&script[1], Statement::Function { name, .. } if name == "f"));
        assert!(matches!(&script[2], Statement::Block { words, .. } if words.len() == 4));
    }

    #[test]
    fn what_is_not_well_formed_is_no_script() {
        for text in ["if a; then b", "fi", "}", "menuentry 'x' {", "for a in b; c", "function {", &"if ".repeat(99_999)]
        {
            assert_eq!(parse_script(text), None, "{text:.20}");
        }
        assert!(parse_script("").unwrap().is_empty());
    }
}
