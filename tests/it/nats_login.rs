//! Logins to NATS by files of credentials: a server with an operator, whose accounts and users are signed documents, and
//! keys that are made for each test.

use std::path::{Path, PathBuf};
use std::process::Output;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::harness::{Service, imgcls, label_of, request, test_image, until};
use crate::nats_server::NatsServer;

/// A server of an operator, with one account that may use JetStream.
struct Operated {
    server: NatsServer,
    account: KeyPair,
    files: tempfile::TempDir,
}

impl Operated {
    fn start() -> Operated {
        let (operator, system, account) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
        let unlimited = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1,
            "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
        });
        // The account of the system has no JetStream.
        let limited =
            json!({"subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1});
        let of_operator = json!({"type": "operator", "version": 2, "system_account": system.public_key()});
        let of_system = json!({"type": "account", "version": 2, "limits": limited});
        let of_account = json!({"type": "account", "version": 2, "limits": unlimited});
        let settings = format!(
            "operator: \"{}\"\nsystem_account: {system}\nresolver: MEMORY\n\
             resolver_preload: {{\n {system}: \"{}\"\n {}: \"{}\"\n}}\n",
            signed(&operator, &operator, None, &of_operator),
            signed(&operator, &system, None, &of_system),
            account.public_key(),
            signed(&operator, &account, None, &of_account),
            system = system.public_key(),
        );
        Operated { server: NatsServer::start(&settings), account, files: tempfile::tempdir().unwrap() }
    }

    /// A file of credentials of a user whom `issuer` admits, with the seed of `holder`.
    fn credentials(
        &self,
        name: &str,
        issuer: &KeyPair,
        user: &KeyPair,
        holder: &KeyPair,
        until: Option<u64>,
    ) -> PathBuf {
        let claims = json!({"type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1});
        let path = self.files.path().join(name);
        let (jwt, seed) = (signed(issuer, user, until, &claims), holder.seed().unwrap());
        std::fs::write(&path, file_of(&jwt, &seed)).unwrap();
        path
    }
}

/// A document that says what `subject` may do, signed by `issuer`.
fn signed(issuer: &KeyPair, subject: &KeyPair, until: Option<u64>, claims: &Value) -> String {
    let mut document = json!({
        "jti": "1", "iat": 1_700_000_000, "iss": issuer.public_key(), "sub": subject.public_key(), "name": "imgcls",
        "nats": claims,
    });
    if let Some(until) = until {
        document["exp"] = until.into();
    }
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let encoded = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let content = format!("{}.{}", encoded(&header), encoded(&document));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(content.as_bytes()).unwrap());
    format!("{content}.{signature}")
}

/// The form that `nsc` writes.
fn file_of(jwt: &str, seed: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\nNKEYs are sensitive.\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n"
    )
}

fn depth(url: &str, credentials: Option<&Path>) -> Output {
    let mut command = imgcls();
    command.args(["queue", "depth", "--json"]).env("IMGCLS_NATS_URL", url);
    if let Some(file) = credentials {
        command.arg("--nats-credentials").arg(file);
    }
    command.output().unwrap()
}

#[test]
fn a_file_of_credentials_is_the_login_of_a_whole_service() {
    let mut operated = Operated::start();
    let user = KeyPair::new_user();
    let file = operated.credentials("user.creds", &operated.account, &user, &user, None);
    let environment = vec![
        ("IMGCLS_NATS_URL".to_owned(), operated.server.url()),
        ("IMGCLS_NATS_CREDENTIALS".to_owned(), file.to_str().unwrap().to_owned()),
    ];
    let service = Service::start_on(&["--backend", "nats"], environment, 1, &[], &[]);
    let answer = service.request("POST", "/v1/classify", &[], &test_image("cat.jpg"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["predictions"][0]["label"], label_of("cat.jpg").as_str());
    // The client logs in again with the same file.
    operated.server.kill();
    operated.server.restart();
    let again = until("an answer after a new login", || {
        let answer = request(service.address, "POST", "/v1/classify", &[], &test_image("rocket.jpg")).ok()?;
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(again.json()["predictions"][0]["label"], label_of("rocket.jpg").as_str());
    for log in [service.web.log(), service.workers[0].log()] {
        assert!(!log.contains(&user.seed().unwrap()), "{log}");
    }
}

#[test]
fn wrong_credentials_are_refused_in_one_line_without_a_secret() {
    let operated = Operated::start();
    let (user, other, stranger) = (KeyPair::new_user(), KeyPair::new_user(), KeyPair::new_account());
    let good = operated.credentials("good", &operated.account, &user, &user, None);
    let text = std::fs::read_to_string(&good).unwrap();
    let write = |name: &str, text: &str| {
        let path = operated.files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let seed = user.seed().unwrap();
    let jwt = text.lines().nth(1).unwrap();
    let refused = [
        operated.credentials("of-another-account", &stranger, &user, &user, None),
        operated.credentials("of-another-key", &operated.account, &user, &other, None),
        operated.credentials("expired", &operated.account, &user, &user, Some(1_700_000_001)),
    ];
    let unreadable = [
        write("empty", ""),
        write("seed-alone", &seed),
        write("password", "hunter2-of-somebody"),
        write("damaged-seed", &text.replace(&seed, &seed[..seed.len() - 4])),
        write("no-seed", &text[..text.find("*****").unwrap()]),
        operated.files.path().to_owned(),
    ];
    let allowed = depth(&operated.server.url(), Some(&good));
    assert!(allowed.status.success(), "{}", String::from_utf8_lossy(&allowed.stderr));
    let login = |file: &PathBuf| {
        let servers = operated.server.url();
        format!("NATS at {servers} refuses the credentials in {}: ", file.display())
    };
    let reading = |file: &PathBuf| format!("cannot read credentials of NATS from {}; `nsc` writes", file.display());
    let cases = refused.iter().map(|file| (Some(file), login(file)));
    let cases = cases.chain(unreadable.iter().map(|file| (Some(file), reading(file))));
    let without = (None, format!("NATS at {} refuses the login: give user and password", operated.server.url()));
    for (file, said) in cases.chain([without]) {
        let output = depth(&operated.server.url(), file.map(PathBuf::as_path));
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.lines().count() == 1 && error.contains(&said), "{said:?} is not in {error:?}");
        for secret in [seed.as_str(), &seed[..20], &other.seed().unwrap(), jwt, "hunter2"] {
            assert!(!error.contains(secret), "{error}");
        }
    }
}
