//! A client of the WebDriver protocol (https://www.w3.org/TR/webdriver2/) with the few commands that the tests need.
//!
//! Existing crates for it enable more features of dependencies that the program also has, so that these would be built
//! twice: once for the program and once for its tests.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::harness::{request, until};

/// The key under which an element reference is sent; the standard fixes it.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// One browser window, closed when it is dropped.
pub struct Browser {
    driver: SocketAddr,
    session: String,
}

pub struct Element<'a> {
    browser: &'a Browser,
    /// The path of the element below `/session/<id>`.
    path: String,
}

/// How an element is found.
#[derive(Clone, Copy)]
pub enum Locator<'a> {
    Css(&'a str),
    XPath(&'a str),
}

impl Browser {
    /// Starts a browser with the given capabilities.
    pub fn start(driver: SocketAddr, capabilities: &Value) -> Browser {
        let session = json!({"capabilities": {"alwaysMatch": capabilities}});
        let started = command(driver, "POST", "/session", Some(&session));
        let session = started["sessionId"].as_str().expect("a new session has an id").to_owned();
        Browser { driver, session }
    }

    pub fn goto(&self, url: &str) {
        self.command("POST", "/url", Some(&json!({"url": url})));
    }

    /// Waits for the first element that matches.
    pub fn wait_for(&self, locator: Locator) -> Element<'_> {
        until(locator.expression(), || self.find_all(locator).into_iter().next())
    }

    pub fn find_all(&self, locator: Locator) -> Vec<Element<'_>> {
        self.find_below("", locator)
    }

    /// Runs the body of a function in the page, and returns what it returns.
    pub fn run(&self, script: &str) -> Value {
        self.command("POST", "/execute/sync", Some(&json!({"script": script, "args": []})))
    }

    /// Runs the body of a function whose last argument is to be called with the result.
    pub fn run_async(&self, script: &str) -> Value {
        self.command("POST", "/execute/async", Some(&json!({"script": script, "args": []})))
    }

    /// Presses keys where the focus is.
    pub fn press(&self, keys: &str) {
        let actions: Vec<Value> = keys
            .chars()
            .flat_map(|key| [json!({"type": "keyDown", "value": key}), json!({"type": "keyUp", "value": key})])
            .collect();
        let actions = json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]});
        self.command("POST", "/actions", Some(&actions));
    }

    /// Sets the size of the page, which a window cannot have below its own smallest size, and the media features that the
    /// style sheets see. This command is Chromium's own.
    pub fn emulate(&self, width: u32, height: u32, features: &[(&str, &str)]) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
        // Without transitions: what is checked right after a change would be between two colours.
        let still = [("prefers-reduced-motion", "reduce")];
        let features: Vec<Value> =
            features.iter().chain(&still).map(|(name, value)| json!({"name": name, "value": value})).collect();
        self.devtools("Emulation.setEmulatedMedia", &json!({"features": features}));
    }

    fn devtools(&self, command: &str, parameters: &Value) {
        self.command("POST", "/goog/cdp/execute", Some(&json!({"cmd": command, "params": parameters})));
    }

    /// A screenshot of the page, in PNG.
    pub fn screenshot(&self) -> Vec<u8> {
        let encoded = self.command("GET", "/screenshot", None);
        BASE64_STANDARD.decode(encoded.as_str().expect("a screenshot is text")).expect("a screenshot is base64")
    }

    fn find_below(&self, parent: &str, locator: Locator) -> Vec<Element<'_>> {
        let using = match locator {
            Locator::Css(_) => "css selector",
            Locator::XPath(_) => "xpath",
        };
        let query = json!({"using": using, "value": locator.expression()});
        let found = self.command("POST", &format!("{parent}/elements"), Some(&query));
        let references = found.as_array().expect("elements are a list").iter();
        references
            .map(|reference| reference[ELEMENT].as_str().expect("a reference to an element"))
            .map(|reference| Element { browser: self, path: format!("/element/{reference}") })
            .collect()
    }

    fn command(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        command(self.driver, method, &format!("/session/{}{path}", self.session), body)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A failed test must not panic again here. Without this request the browser would outlive its driver.
        let _ = request(self.driver, "DELETE", &format!("/session/{}", self.session), &[], b"");
    }
}

impl Element<'_> {
    pub fn click(&self) {
        self.browser.command("POST", &format!("{}/click", self.path), Some(&json!({})));
    }

    pub fn send_keys(&self, keys: &str) {
        self.browser.command("POST", &format!("{}/value", self.path), Some(&json!({"text": keys})));
    }

    /// The text as it is shown.
    pub fn text(&self) -> String {
        let text = self.browser.command("GET", &format!("{}/text", self.path), None);
        text.as_str().expect("the text of an element").to_owned()
    }

    pub fn find(&self, locator: Locator) -> Element<'_> {
        let first = self.find_all(locator).into_iter().next();
        first.unwrap_or_else(|| panic!("no element matches {}", locator.expression()))
    }

    pub fn find_all(&self, locator: Locator) -> Vec<Element<'_>> {
        self.browser.find_below(&self.path, locator)
    }
}

impl<'a> Locator<'a> {
    fn expression(self) -> &'a str {
        match self {
            Locator::Css(expression) | Locator::XPath(expression) => expression,
        }
    }
}

fn command(driver: SocketAddr, method: &str, path: &str, body: Option<&Value>) -> Value {
    let body = body.map(Value::to_string).unwrap_or_default();
    let headers = [("Content-Type", "application/json; charset=utf-8")];
    let response = request(driver, method, path, &headers, body.as_bytes());
    let response = response.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
    assert_eq!(response.status, 200, "{method} {path}: {}", response.text());
    response.json()["value"].take()
}
