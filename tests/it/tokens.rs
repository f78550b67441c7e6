//! Who does not hold the key does not command: each way to try it has a test (I10).
//!
//! Each test shows that the server is as before and takes a right token afterwards.

use std::fs;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::{
    sandbox::{SLEEPER, Sandbox, Wire, skip},
    signing::{Forge, Which, pair, rsa},
};

const START: &str = r#"{"op":"start","child":"web"}"#;

/// The one text for every token that is not right.
const UNAUTHORIZED: &str = "the command is not signed by a key that this server knows";

/// A server that knows the child `web`, which nothing but a signed command starts.
fn quiet() -> Sandbox {
    let sandbox = Sandbox::signed("");
    sandbox.write("web.yml", SLEEPER);
    sandbox
}

/// Shows that nothing was started so far, and that a right token starts it.
fn takes_a_right_token(sandbox: &Sandbox) {
    assert_eq!(sandbox.processes(), []);
    let answer = sandbox.wire().ask_signed(1, START);
    assert_eq!(answer["ok"]["run"], 1, "{answer}");
    let answer = sandbox
        .wire()
        .ask_signed(1, r#"{"op":"stop","child":"web"}"#);
    assert_eq!(answer["ok"]["op"], "stop", "{answer}");
}

/// Sends a token on a connection of its own; it must be refused as all others are.
fn refused(sandbox: &Sandbox, make: impl Fn(&str) -> String) {
    let mut wire = sandbox.wire();
    let token = make(&wire.hello);
    wire.send_token(1, &token);
    is_unauthorized(&mut wire, 1);
}

fn is_unauthorized(wire: &mut Wire, id: u64) {
    let error = json!({"code": "unauthorized", "message": UNAUTHORIZED});
    assert_eq!(wire.value(), json!({"id": id, "error": error}));
}

/// A token that is right but for one thing is refused, and a right one is taken afterwards.
macro_rules! refused {
    ($($(#[$doc:meta])* $name:ident: |$forge:ident, $hello:ident| $changed:expr;)*) => {$(
        #[test]
        $(#[$doc])*
        fn $name() {
            let sandbox = quiet();
            refused(&sandbox, |$hello| {
                let $forge = Forge::new($hello, 1, START);
                let _ = $hello;
                let forge: Forge = $changed;
                forge.token()
            });
            takes_a_right_token(&sandbox);
        }
    )*};
}

refused! {
    a_token_by_the_wrong_key_is_refused: |f, h| f.key(rsa(Which::Other));
    a_token_signed_as_rs384_is_refused: |f, h| f.method(Algorithm::RS384);
    a_token_signed_as_rs512_is_refused: |f, h| f.method(Algorithm::RS512);
    a_token_signed_as_ps256_is_refused: |f, h| f.method(Algorithm::PS256);
    a_token_signed_as_ps256_that_says_rs256_is_refused:
        |f, h| f.method(Algorithm::PS256).header("alg", r#""RS256""#);
    a_token_that_says_rs384_over_a_signature_by_rs256_is_refused: |f, h| f.header("alg", r#""RS384""#);
    hs256_with_the_public_pem_as_secret_is_refused:
        |f, h| f.key(EncodingKey::from_secret(pair(Which::Deploy).public.as_bytes()))
            .method(Algorithm::HS256);
    hs256_that_says_rs256_is_refused:
        |f, h| f.key(EncodingKey::from_secret(pair(Which::Deploy).public.as_bytes()))
            .method(Algorithm::HS256).header("alg", r#""RS256""#);
    an_unknown_key_name_is_refused_with_the_same_answer:
        |f, h| f.header("kid", r#""nobody""#).claim("iss", r#""nobody""#);
    a_key_name_that_leads_upwards_is_refused:
        |f, h| f.header("kid", r#""../keys/deploy""#).claim("iss", r#""../keys/deploy""#);
    a_key_name_that_is_an_absolute_path_is_refused:
        |f, h| f.header("kid", r#""/etc/deploy""#).claim("iss", r#""/etc/deploy""#);
    a_key_name_with_nul_is_refused:
        |f, h| f.header("kid", r#""deploy\u0000""#).claim("iss", r#""deploy\u0000""#);
    an_empty_key_name_is_refused: |f, h| f.header("kid", r#""""#).claim("iss", r#""""#);
    a_key_name_that_is_a_number_is_refused: |f, h| f.header("kid", "7").claim("iss", "7");
    a_key_name_of_65_characters_is_refused: |f, h| {
        let name = json!("x".repeat(65)).to_string();
        f.header("kid", &name).claim("iss", &name)
    };
    a_key_name_in_other_case_is_refused: |f, h| f.header("kid", r#""Deploy""#).claim("iss", r#""Deploy""#);
    a_key_name_with_its_extension_is_refused:
        |f, h| f.header("kid", r#""deploy.pem""#).claim("iss", r#""deploy.pem""#);
    a_wrong_typ_is_refused: |f, h| f.header("typ", r#""JWT""#);
    a_typ_in_other_case_is_refused: |f, h| f.header("typ", r#""Supervisor-Cmd+JWT""#);
    a_missing_typ_is_refused: |f, h| f.without_header("typ");
    a_missing_alg_is_refused: |f, h| f.without_header("alg");
    a_missing_kid_is_refused: |f, h| f.without_header("kid");
    crit_is_refused: |f, h| f.header("crit", r#"["exp"]"#).header("exp", "1");
    an_empty_crit_is_refused: |f, h| f.header("crit", "[]");
    b64_is_refused: |f, h| f.header("b64", "false").header("crit", r#"["b64"]"#);
    an_unknown_field_of_the_header_is_refused: |f, h| f.header("extra", "1");
    a_field_that_stands_twice_in_the_header_is_refused: |f, h| f.header_again("kid", r#""deploy""#);
    a_field_that_stands_twice_in_the_header_by_an_escape_is_refused:
        |f, h| f.header_again("k\\u0069d", r#""deploy""#);
    another_audience_is_refused: |f, h| f.claim("aud", r#""0191d9a5-7c3e-4b1d-9a3f-00000000ffff""#);
    several_audiences_are_refused: |f, h| {
        let hello: Value = serde_json::from_str(h).unwrap();
        f.claim("aud", &json!([hello["hello"]["id"]]).to_string())
    };
    a_missing_audience_is_refused: |f, h| f.without_claim("aud");
    another_nonce_is_refused: |f, h| f.claim("nonce", r#""AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA""#);
    an_empty_nonce_is_refused: |f, h| f.claim("nonce", r#""""#);
    a_missing_nonce_is_refused: |f, h| f.without_claim("nonce");
    another_issuer_is_refused: |f, h| f.claim("iss", r#""other""#);
    a_missing_issuer_is_refused: |f, h| f.without_claim("iss");
    a_missing_iat_is_refused: |f, h| f.without_claim("iat");
    a_missing_exp_is_refused: |f, h| f.without_claim("exp");
    a_missing_jti_is_refused: |f, h| f.without_claim("jti");
    a_missing_command_is_refused: |f, h| f.without_claim("cmd");
    the_number_of_another_request_is_refused: |f, h| f.claim("jti", r#""2""#);
    the_number_of_the_request_with_a_zero_before_it_is_refused: |f, h| f.claim("jti", r#""01""#);
    the_number_of_the_request_as_a_number_is_refused: |f, h| f.claim("jti", "1");
    an_expired_token_is_refused: |f, h| f.times(h, -200, -40);
    a_token_from_the_future_is_refused: |f, h| f.times(h, 100, 160);
    a_token_that_ends_before_it_begins_is_refused: |f, h| f.times(h, 10, 5);
    a_lifetime_over_five_minutes_is_refused: |f, h| f.times(h, 0, 301);
    exp_as_a_float_is_refused: |f, h| {
        let hello: Value = serde_json::from_str(h).unwrap();
        let exp = hello["hello"]["time"].as_i64().unwrap() + 60;
        f.claim("exp", &format!("{exp}.0"))
    };
    exp_with_an_exponent_is_refused: |f, h| f.claim("exp", "2e9");
    exp_as_a_string_is_refused: |f, h| {
        let hello: Value = serde_json::from_str(h).unwrap();
        let exp = hello["hello"]["time"].as_i64().unwrap() + 60;
        f.claim("exp", &format!("\"{exp}\""))
    };
    exp_below_zero_is_refused: |f, h| f.claim("exp", "-1");
    a_huge_exp_is_refused: |f, h| f.claim("exp", "18446744073709551615");
    exp_beyond_all_numbers_is_refused: |f, h| f.claim("exp", "1e400");
    exp_as_null_is_refused: |f, h| f.claim("exp", "null");
    iat_below_zero_is_refused: |f, h| f.claim("iat", "-1");
    nbf_ahead_is_refused: |f, h| {
        let hello: Value = serde_json::from_str(h).unwrap();
        let nbf = hello["hello"]["time"].as_i64().unwrap() + 50;
        f.claim("nbf", &nbf.to_string())
    };
    nbf_as_a_string_is_refused: |f, h| f.claim("nbf", r#""0""#);
    a_claim_that_stands_twice_is_refused: |f, h| f.claim_again("iss", r#""deploy""#);
    a_claim_that_stands_twice_by_an_escape_is_refused: |f, h| f.claim_again("c\\u006dd", START);
    an_unknown_claim_is_refused: |f, h| f.claim("scope", r#""all""#);
    a_field_that_stands_twice_in_the_command_is_refused:
        |f, h| f.claim("cmd", r#"{"op":"check","op":"start","child":"web"}"#);
    an_unknown_field_of_the_command_is_refused:
        |f, h| f.claim("cmd", r#"{"op":"start","child":"web","force":true}"#);
    a_command_that_is_a_string_is_refused: |f, h| f.claim("cmd", r#""start web""#);
    a_command_that_does_not_exist_is_refused: |f, h| f.claim("cmd", r#"{"op":"explode"}"#);
}

#[test]
fn no_token_is_refused() {
    let sandbox = quiet();
    let mut wire = sandbox.wire();
    for (id, command) in (1..).zip([START, r#"{"op":"check"}"#, r#"{"op":"kill"}"#]) {
        wire.ask(id, command);
        is_unauthorized(&mut wire, id);
    }
    takes_a_right_token(&sandbox);
}

#[test]
fn alg_none_in_any_case_is_refused() {
    let sandbox = quiet();
    for none in ["none", "None", "NONE", "nOnE", ""] {
        let make = |hello: &str| {
            let forge = Forge::new(hello, 1, START).header("alg", &json!(none).to_string());
            forge.message()
        };
        refused(&sandbox, |hello| format!("{}.", make(hello)));
        refused(&sandbox, make);
        // With the signature that the rest would have.
        refused(&sandbox, |hello| {
            let signature = Forge::new(hello, 1, START).token();
            let (_, signature) = signature.rsplit_once('.').unwrap();
            format!("{}.{signature}", make(hello))
        });
    }
    for alg in [
        "null",
        "[]",
        "[\"RS256\"]",
        "256",
        "true",
        "{}",
        "\"rs256\"",
        "\"RS256 \"",
    ] {
        refused(&sandbox, |hello| {
            Forge::new(hello, 1, START).header("alg", alg).token()
        });
    }
    takes_a_right_token(&sandbox);
}

#[test]
fn a_signature_that_was_cut_changed_or_taken_away_is_refused() {
    let sandbox = quiet();
    let right = |hello: &str| Forge::new(hello, 1, START).token();
    refused(&sandbox, |hello| Forge::new(hello, 1, START).message());
    refused(&sandbox, |hello| {
        format!("{}.", Forge::new(hello, 1, START).message())
    });
    refused(&sandbox, |hello| {
        right(hello)[..right(hello).len() - 1].to_owned()
    });
    refused(&sandbox, |hello| format!("{}A", right(hello)));
    refused(&sandbox, |hello| format!("{}=", right(hello)));
    refused(&sandbox, |hello| format!("{} ", right(hello)));
    refused(&sandbox, |hello| format!(" {}", right(hello)));
    refused(&sandbox, |hello| format!("{}.", right(hello)));
    refused(&sandbox, |hello| {
        let token = right(hello);
        let (message, signature) = token.rsplit_once('.').unwrap();
        let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        bytes[100] ^= 1;
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(bytes))
    });
    for zeros in [0, 1, 256, 512] {
        refused(&sandbox, |hello| {
            let signature = URL_SAFE_NO_PAD.encode(vec![0; zeros]);
            format!("{}.{signature}", Forge::new(hello, 1, START).message())
        });
    }
    takes_a_right_token(&sandbox);
}

#[test]
fn claims_that_were_changed_after_signing_are_refused() {
    let sandbox = quiet();
    refused(&sandbox, |hello| {
        let signed = Forge::new(hello, 1, r#"{"op":"check"}"#).token();
        let (_, signature) = signed.rsplit_once('.').unwrap();
        format!("{}.{signature}", Forge::new(hello, 1, START).message())
    });
    takes_a_right_token(&sandbox);
}

#[test]
fn what_is_no_token_at_all_is_refused() {
    let sandbox = quiet();
    for text in [
        "",
        ".",
        "..",
        "...",
        "a",
        "a.b",
        "a.b.c",
        "a.b.c.d",
        "é.é.é",
        "\u{0}.\u{0}.\u{0}",
    ] {
        refused(&sandbox, |_| text.to_owned());
    }
    let deep = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":{}", "[".repeat(20_000)));
    refused(&sandbox, |_| format!("{deep}.{deep}.AAAA"));
    takes_a_right_token(&sandbox);
}

#[test]
fn a_token_is_good_once() {
    let sandbox = quiet();
    let mut wire = sandbox.wire();
    let token = Forge::new(&wire.hello, 5, r#"{"op":"info"}"#).token();
    wire.send_token(5, &token);
    assert_eq!(wire.answer().1["ok"]["op"], "info");
    // Under another number it is not for that request, and once more its number is used up.
    wire.send_token(6, &token);
    is_unauthorized(&mut wire, 6);
    wire.send_token(5, &token);
    let (id, answer) = wire.answer();
    assert_eq!(
        (id, &answer["error"]["code"]),
        (Some(5), &json!("bad_request"))
    );
    assert_eq!(wire.line(), None);
    takes_a_right_token(&sandbox);
}

#[test]
fn a_token_of_another_connection_is_refused() {
    let sandbox = quiet();
    let first = sandbox.wire();
    let token = Forge::new(&first.hello, 1, START).token();
    refused(&sandbox, |_| token.clone());
    takes_a_right_token(&sandbox);
}

#[test]
fn a_token_for_another_server_is_refused() {
    let (here, there) = (quiet(), quiet());
    let mut wire = here.wire();
    let hello: Value = serde_json::from_str(&there.wire().hello).unwrap();
    let forge = Forge::new(&wire.hello, 1, START);
    let token = forge
        .claim("aud", &hello["hello"]["id"].to_string())
        .token();
    wire.send_token(1, &token);
    is_unauthorized(&mut wire, 1);
    takes_a_right_token(&here);
}

#[test]
fn ids_that_do_not_increase_are_refused() {
    let sandbox = quiet();
    for second in [7, 6, 0] {
        let mut wire = sandbox.wire();
        assert_eq!(wire.ask_signed(7, r#"{"op":"info"}"#)["ok"]["op"], "info");
        let token = Forge::new(&wire.hello, second, START).token();
        wire.send_token(second, &token);
        assert_eq!(wire.answer().1["error"]["code"], "bad_request");
        assert_eq!(wire.line(), None);
    }
    takes_a_right_token(&sandbox);
}

#[test]
fn what_other_tokens_carry_for_other_readers_is_passed_over() {
    let sandbox = quiet();
    let mut wire = sandbox.wire();
    let stranger = json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}).to_string();
    let token = Forge::new(&wire.hello, 1, r#"{"op":"info"}"#)
        .header("jku", r#""http://192.0.2.1/keys""#)
        .header("jwk", &stranger)
        .header("x5u", r#""http://192.0.2.1/cert""#)
        .header("x5c", r#"["AAAA"]"#)
        .token();
    wire.send_token(1, &token);
    assert_eq!(wire.answer().1["ok"]["op"], "info");
    // A key that comes with the token is no key.
    let forge = Forge::new(&wire.hello, 2, START).key(rsa(Which::Other));
    let token = forge.header("jwk", &stranger).token();
    wire.send_token(2, &token);
    is_unauthorized(&mut wire, 2);
    takes_a_right_token(&sandbox);
}

#[test]
fn nbf_that_has_passed_and_times_within_the_leeway_are_taken() {
    let sandbox = quiet();
    let mut wire = sandbox.wire();
    for (id, (iat, exp)) in (1..).zip([(-20, -10), (20, 100), (0, 300), (-290, 10)]) {
        let forge = Forge::new(&wire.hello, id, r#"{"op":"info"}"#);
        let token = forge.times(&wire.hello, iat, exp).claim("nbf", "1").token();
        wire.send_token(id, &token);
        let answer = wire.answer().1;
        assert_eq!(answer["ok"]["op"], "info", "{iat} {exp}: {answer}");
    }
}

#[test]
fn every_command_can_be_signed() {
    let mut sandbox = quiet();
    let mut wire = sandbox.wire();
    for (id, (command, op)) in (1..).zip([
        (START, "start"),
        (r#"{"op":"restart","child":"web"}"#, "restart"),
        (r#"{"op":"trystart","child":"web"}"#, "trystart"),
        (r#"{"op":"check","child":"web"}"#, "check"),
        (r#"{"op":"check","all":true}"#, "check"),
        (r#"{"op":"info"}"#, "info"),
        (r#"{"op":"stop","child":"web"}"#, "stop"),
        (r#"{"op":"start","all":true}"#, "start"),
        (r#"{"op":"stop","all":true}"#, "stop"),
        (r#"{"op":"kill","stop_children":true}"#, "kill"),
    ]) {
        let answer = wire.ask_signed(id, command);
        assert_eq!(answer["ok"]["op"], op, "{answer}");
    }
    assert_eq!(sandbox.wait_server(), 0);
}

#[test]
fn tokens_may_be_pipelined_and_are_carried_out_in_their_order() {
    let sandbox = quiet();
    let mut wire = sandbox.wire();
    let commands = [START, r#"{"op":"stop","child":"web"}"#].repeat(20);
    let mut lines = String::new();
    for (id, command) in (1..).zip(&commands) {
        let token = Forge::new(&wire.hello, id, command).token();
        lines.push_str(&json!({"id": id, "token": token}).to_string());
        lines.push('\n');
    }
    wire.send(lines);
    let mut runs = Vec::new();
    for _ in &commands {
        let (id, answer) = wire.answer();
        // A stop may overtake the start before it, which is told then.
        let code = &answer["error"]["code"];
        assert!(
            answer.get("ok").is_some() || code == "superseded" || code == "not_running",
            "{answer}"
        );
        runs.push(id.unwrap());
    }
    runs.sort_unstable();
    assert_eq!(runs, (1..=40).collect::<Vec<u64>>());
    assert_eq!(
        wire.ask_signed(41, r#"{"op":"check"}"#)["ok"]["children"],
        json!([])
    );
}

#[test]
fn a_line_of_ten_megabytes_is_refused_and_not_kept() {
    let sandbox = quiet();
    let mut wire = sandbox.wire();
    let chunk = vec![b'x'; 1 << 20];
    wire.send(b"{\"id\":1,\"token\":\"");
    for _ in 0..10 {
        if !wire.try_send(&chunk) {
            break;
        }
    }
    assert_eq!(wire.answer().1["error"]["code"], "too_large");
    takes_a_right_token(&sandbox);
}

#[test]
fn a_web_page_that_posts_a_token_gets_no_further_than_its_first_line() {
    let sandbox = quiet();
    let mut wire = sandbox.wire();
    let token = Forge::new(&wire.hello, 1, START).token();
    let body = json!({"id": 1, "token": token}).to_string();
    wire.send(format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}\n",
        body.len()
    ));
    assert_eq!(wire.answer().1["error"]["code"], "bad_request");
    assert_eq!(wire.line(), None);
    takes_a_right_token(&sandbox);
}

#[test]
fn why_a_token_is_refused_stands_in_the_log_alone() {
    let sandbox = quiet();
    refused(&sandbox, |hello| {
        let forge = Forge::new(hello, 1, START).key(rsa(Which::Other));
        forge.token()
    });
    refused(&sandbox, |hello| {
        Forge::new(hello, 1, START).times(hello, -200, -40).token()
    });
    refused(&sandbox, |hello| {
        Forge::new(hello, 1, START)
            .header("kid", r#""no\nbody""#)
            .token()
    });
    let log = sandbox.server_log();
    let lines: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("refused"))
        .collect();
    assert_eq!(lines.len(), 3, "{log}");
    assert!(
        lines[0].contains("deploy") && lines[0].contains("signature"),
        "{log}"
    );
    assert!(lines[1].contains("`exp`"), "{log}");
    // No token stands in the log, which others may read.
    assert!(!log.contains("eyJ"), "{log}");
}

#[test]
fn with_encrypt_off_a_token_is_verified_all_the_same() {
    let mut sandbox = Sandbox::new("pub_keys_path: [keys]");
    fs::create_dir(sandbox.key_dir()).unwrap();
    sandbox.admit("deploy", &pair(Which::Deploy).public);
    sandbox.write("web.yml", SLEEPER);
    sandbox.start_server();
    refused(&sandbox, |hello| {
        Forge::new(hello, 1, START).key(rsa(Which::Other)).token()
    });
    assert_eq!(sandbox.wire().ask_signed(1, START)["ok"]["run"], 1);
}

#[test]
fn what_a_debugger_of_tokens_says_is_what_is_signed() {
    // openssl makes the same signature: the format is nothing of our own.
    let sandbox = quiet();
    let mut wire = sandbox.wire();
    let message = Forge::new(&wire.hello, 1, r#"{"op":"info"}"#).message();
    let (key, text) = (
        sandbox.private_key("deploy", Which::Deploy),
        sandbox.root().join("message"),
    );
    fs::write(&text, &message).unwrap();
    let mut openssl = std::process::Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-sign", &key]).arg(&text);
    let Ok(signed) = openssl.output() else {
        return skip("openssl is missing");
    };
    assert!(signed.status.success(), "{signed:?}");
    let signature = URL_SAFE_NO_PAD.encode(signed.stdout);
    wire.send_token(1, &format!("{message}.{signature}"));
    assert_eq!(wire.answer().1["ok"]["op"], "info");
}
