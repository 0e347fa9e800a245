//! The part of metric math that the stack uses: numbers, names, `IF`, `FILL`, `AND`, `OR`, comparisons, `+ - * /` and
//! brackets.

/// The value of an expression. Returns `None` if a name in it has no value: CloudWatch then has no datapoint.
pub fn value(expression: &str, named: &dyn Fn(&str) -> Option<f64>) -> Option<f64> {
    let mut reader = Reader { words: words(expression), next: 0, named };
    let value = reader.either();
    assert_eq!(reader.next, reader.words.len(), "{expression:?} cannot be read to its end");
    value
}

fn words(expression: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut joins = false;
    let is_of_name = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    for c in expression.chars() {
        let last = words.last().and_then(|word| word.chars().last());
        let goes_on = joins
            && last.is_some_and(|last| (is_of_name(last) && is_of_name(c)) || ("<>=!".contains(last) && c == '='));
        joins = !c.is_whitespace();
        match words.last_mut() {
            Some(word) if goes_on => word.push(c),
            _ if joins => words.push(c.to_string()),
            _ => {}
        }
    }
    words
}

struct Reader<'a> {
    words: Vec<String>,
    next: usize,
    named: &'a dyn Fn(&str) -> Option<f64>,
}

/// A recursive-descent parser, from the lowest to the highest precedence.
impl Reader<'_> {
    fn either(&mut self) -> Option<f64> {
        self.chain(&["OR"], Self::both, |_, left, right| truth(left != 0.0 || right != 0.0))
    }

    fn both(&mut self) -> Option<f64> {
        self.chain(&["AND"], Self::comparison, |_, left, right| truth(left != 0.0 && right != 0.0))
    }

    fn comparison(&mut self) -> Option<f64> {
        self.chain(&["<", "<=", ">", ">=", "==", "!="], Self::sum, |operator, left, right| {
            let order = left.partial_cmp(&right)?;
            truth(match operator {
                "<" => order.is_lt(),
                "<=" => order.is_le(),
                ">" => order.is_gt(),
                ">=" => order.is_ge(),
                "==" => order.is_eq(),
                _ => order.is_ne(),
            })
        })
    }

    fn sum(&mut self) -> Option<f64> {
        self.chain(&["+", "-"], Self::product, |operator, left, right| {
            Some(if operator == "+" { left + right } else { left - right })
        })
    }

    fn product(&mut self) -> Option<f64> {
        self.chain(&["*", "/"], Self::operand, |operator, left, right| {
            let value = if operator == "*" { left * right } else { left / right };
            value.is_finite().then_some(value)
        })
    }

    fn operand(&mut self) -> Option<f64> {
        let word = self.take();
        match word.as_str() {
            "(" => {
                let value = self.either();
                self.expect(")");
                value
            }
            "IF" => {
                self.expect("(");
                let condition = self.either();
                self.expect(",");
                let then = self.either();
                self.expect(",");
                let otherwise = self.either();
                self.expect(")");
                if condition? == 0.0 { otherwise } else { then }
            }
            "FILL" => {
                self.expect("(");
                let value = self.operand();
                self.expect(",");
                let filling = self.either();
                self.expect(")");
                value.or(filling)
            }
            number if number.starts_with(|c: char| c.is_ascii_digit()) => Some(number.parse().unwrap()),
            name => (self.named)(name),
        }
    }

    fn chain(
        &mut self,
        operators: &[&str],
        operand: fn(&mut Self) -> Option<f64>,
        combine: fn(&str, f64, f64) -> Option<f64>,
    ) -> Option<f64> {
        let mut left = operand(self);
        while self.words.get(self.next).is_some_and(|word| operators.contains(&word.as_str())) {
            let operator = self.take();
            let right = operand(self);
            left = left.zip(right).and_then(|(left, right)| combine(&operator, left, right));
        }
        left
    }

    fn take(&mut self) -> String {
        let word = self.words.get(self.next).unwrap_or_else(|| panic!("{:?} ends too early", self.words)).clone();
        self.next += 1;
        word
    }

    fn expect(&mut self, expected: &str) {
        let word = self.take();
        assert_eq!(word, expected, "in {:?}", self.words);
    }
}

#[expect(clippy::unnecessary_wraps, reason = "the functions that combine two values return an option")]
fn truth(holds: bool) -> Option<f64> {
    Some(if holds { 1.0 } else { 0.0 })
}

#[test]
fn expressions_are_evaluated() {
    let named = |name: &str| match name {
        "visible" => Some(3.0),
        "workers" => Some(0.0),
        _ => None,
    };
    for (expression, expected) in [
        ("visible + 2*4", Some(11.0)),
        ("IF(visible >= 1 AND workers < 1, 1, 0)", Some(1.0)),
        ("IF(visible<1 OR workers>=1,1,(visible-1)/2)", Some(1.0)),
        ("visible / workers", None),
        ("visible + absent", None),
        ("visible + FILL(absent, 2)", Some(5.0)),
        ("visible + FILL(visible, 2)", Some(6.0)),
    ] {
        assert_eq!(value(expression, &named), expected, "{expression}");
    }
}
