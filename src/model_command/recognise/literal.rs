//! Literals of Python: ultralytics writes its metadata as `str(dict)`. Nothing is evaluated.

use anyhow::{Context as _, bail, ensure};

/// A literal of Python.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Literal {
    Number(f64),
    Text(String),
    List(Vec<Literal>),
    Dict(Vec<(Literal, Literal)>),
    /// `True`, `False` or `None`.
    Word(String),
}

/// Lists in lists; metadata needs two.
const MAX_DEPTH: usize = 8;

/// Parses one literal.
///
/// # Errors
/// If the text is anything else.
pub(super) fn parse(text: &str) -> anyhow::Result<Literal> {
    let mut parser = Parser { rest: text };
    let literal = parser.literal(0)?;
    ensure!(parser.peek().is_none(), "something follows the literal");
    Ok(literal)
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn literal(&mut self, depth: usize) -> anyhow::Result<Literal> {
        ensure!(depth < MAX_DEPTH, "it is nested too deeply");
        match self.peek().context("it ends too early")? {
            '[' => self.items('[', ']', |parser| parser.literal(depth + 1)).map(Literal::List),
            '(' => self.items('(', ')', |parser| parser.literal(depth + 1)).map(Literal::List),
            '{' => {
                let item = |parser: &mut Self| {
                    let key = parser.literal(depth + 1)?;
                    parser.expect(':')?;
                    Ok((key, parser.literal(depth + 1)?))
                };
                self.items('{', '}', item).map(Literal::Dict)
            }
            quote @ ('\'' | '"') => self.text(quote).map(Literal::Text),
            first if first.is_ascii_digit() || first == '-' => self.number(),
            first if first.is_ascii_alphabetic() => {
                let word = self.take_while(|character| character.is_ascii_alphabetic());
                ensure!(matches!(word.as_str(), "True" | "False" | "None"), "{word} is not a literal");
                Ok(Literal::Word(word))
            }
            other => bail!("{other:?} begins no literal"),
        }
    }

    fn items<T>(
        &mut self,
        open: char,
        close: char,
        mut item: impl FnMut(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<Vec<T>> {
        self.expect(open)?;
        let mut items = Vec::new();
        while self.peek() != Some(close) {
            items.push(item(self)?);
            if self.peek() != Some(close) {
                self.expect(',')?;
            }
        }
        self.expect(close)?;
        Ok(items)
    }

    fn text(&mut self, quote: char) -> anyhow::Result<String> {
        self.expect(quote)?;
        let mut text = String::new();
        loop {
            match self.next().context("a text has no end")? {
                found if found == quote => return Ok(text),
                '\\' => match self.next().context("a text has no end")? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    'x' => text.push(self.code(2)?),
                    'u' => text.push(self.code(4)?),
                    'U' => text.push(self.code(8)?),
                    other => text.push(other),
                },
                other => text.push(other),
            }
        }
    }

    fn code(&mut self, digits: usize) -> anyhow::Result<char> {
        let code = self.rest.get(..digits).context("an escape is cut off")?;
        let number = u32::from_str_radix(code, 16).ok().and_then(char::from_u32).context("an escape is wrong")?;
        self.rest = &self.rest[digits..];
        Ok(number)
    }

    fn number(&mut self) -> anyhow::Result<Literal> {
        let text = self.take_while(|character| character.is_ascii_digit() || "+-.eE_".contains(character));
        text.replace('_', "").parse().map(Literal::Number).with_context(|| format!("{text:?} is not a number"))
    }

    fn take_while(&mut self, is_part: impl Fn(char) -> bool) -> String {
        let end = self.rest.find(|character| !is_part(character)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken.to_owned()
    }

    fn expect(&mut self, wanted: char) -> anyhow::Result<()> {
        let found = self.peek();
        ensure!(found == Some(wanted), "{wanted:?} is missing");
        self.next();
        Ok(())
    }

    /// The next character behind white space.
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let mut characters = self.rest.chars();
        let next = characters.next();
        self.rest = characters.as_str();
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dict_of_names_is_read_with_quotes_and_escapes() {
        let text = r#"{0: 'cat', 1: "dog's", 2: 'a\'b\\c', 3: 'caf\xe9', 4: '犬', }"#;
        let Literal::Dict(entries) = parse(text).unwrap() else { panic!("no dict") };
        let names: Vec<String> = entries.iter().map(|(_, name)| format!("{name:?}")).collect();
        assert_eq!(
            names,
            [r#"Text("cat")"#, r#"Text("dog's")"#, r#"Text("a'b\\c")"#, r#"Text("café")"#, r#"Text("犬")"#]
        );
        assert_eq!(parse("[224, 320]").unwrap(), Literal::List(vec![Literal::Number(224.0), Literal::Number(320.0)]));
        assert_eq!(parse("(1,)").unwrap(), Literal::List(vec![Literal::Number(1.0)]));
        assert_eq!(parse("True").unwrap(), Literal::Word("True".to_owned()));
    }

    #[test]
    fn anything_but_a_literal_is_refused() {
        for text in
            ["", "{", "{0: }", "[1 2]", "'open", "__import__('os')", "os.getcwd()", "1 2", "{0: 'a'", "'\\x4'", "-"]
        {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse(&"[".repeat(10_000)).is_err());
    }
}
