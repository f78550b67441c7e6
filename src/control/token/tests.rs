//! Tokens from an attacker's end: each attack is a test of its own, and refused for its reason.
//!
//! The attacker of most of them has what the server cannot tell from a good client: a token that
//! is signed with a key the server knows, and is wrong in one thing only.

use std::path::Path;
use std::sync::OnceLock;

use jsonwebtoken::EncodingKey;
use serde_json::{Value, json};

use super::*;
use crate::{
    control::keys::{KeyNameError, fixture},
    spec::Verb,
};

const NOW: i64 = 1_700_000_000;
const SERVER: &str = "0b6e8c1e-3a4b-4c6d-8e8f-90a1b2c3d4e5";
const NONCE: &str = "q1dXxOZ6oJ2oM1n0y4m1c0m2T3l5b7f9h1j3k5l7n9o";

const EXPECTED: Expected<'_> = Expected {
    audience: SERVER,
    nonce: NONCE,
    id: 7,
    now: NOW,
};

fn private() -> &'static PrivateKey {
    static KEY: OnceLock<PrivateKey> = OnceLock::new();
    KEY.get_or_init(|| private_from(fixture!("test-only-2048-pkcs1.private.pem")))
}

fn private_from(pem: &str) -> PrivateKey {
    PrivateKey::from_pem(
        "deploy".parse().unwrap(),
        Path::new("deploy.pem"),
        pem.as_bytes(),
    )
    .unwrap()
}

fn public() -> &'static PublicKey {
    static KEY: OnceLock<PublicKey> = OnceLock::new();
    KEY.get_or_init(|| PublicKey::from_pem(fixture!("2048-spki.pem").as_bytes()).unwrap())
}

fn command() -> Command {
    Command::Child {
        verb: Verb::Restart,
        child: "web".parse().unwrap(),
    }
}

fn header() -> Value {
    json!({"alg": "RS256", "typ": "supervisor-cmd+jwt", "kid": "deploy"})
}

fn claims() -> Value {
    json!({
        "iss": "deploy", "aud": SERVER, "nonce": NONCE, "iat": NOW, "exp": NOW + 60, "jti": "7",
        "cmd": {"op": "restart", "child": "web"},
    })
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A token with any header and claims, rightly signed with RS256.
fn signed(header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
    signed_by(private().encoding(), Algorithm::RS256, header, claims)
}

fn signed_by(
    key: &EncodingKey,
    algorithm: Algorithm,
    header: impl AsRef<[u8]>,
    claims: impl AsRef<[u8]>,
) -> String {
    let signed = format!("{}.{}", b64(header), b64(claims));
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), key, algorithm).unwrap();
    format!("{signed}.{signature}")
}

fn with_header(header: impl ToString) -> String {
    signed(header.to_string(), claims().to_string())
}

fn with_claims(claims: impl ToString) -> String {
    signed(header().to_string(), claims.to_string())
}

/// An object with one field set, or taken away.
fn but(mut object: Value, field: &str, value: impl Into<Option<Value>>) -> Value {
    let fields = object.as_object_mut().unwrap();
    match value.into() {
        Some(value) => fields.insert(field.to_owned(), value),
        None => fields.remove(field),
    };
    object
}

/// An object's text with one more field at its end, or at its beginning.
fn plus(object: &Value, field: &str) -> [String; 2] {
    let text = object.to_string();
    [
        format!("{},{field}}}", text.strip_suffix('}').unwrap()),
        format!("{{{field},{}", text.strip_prefix('{').unwrap()),
    ]
}

fn judge(token: &str) -> Result<Command, TokenError> {
    Unverified::parse(token)?.verify(public(), &EXPECTED)
}

fn refused(token: &str) -> TokenError {
    let fault = judge(token).expect_err("a token that is refused");
    let message = fault.to_string();
    assert!(message.len() < 1_000, "{message}");
    assert!(!message.chars().any(char::is_control), "{message:?}");
    fault
}

/// Refused before any key was looked at.
fn unparsed(token: &str) -> TokenError {
    let fault = refused(token);
    assert_eq!(Unverified::parse(token).map(drop), Err(fault.clone()));
    fault
}

/// What is said of a part that is not as it should be.
fn json_fault(token: &str, expected: Part) -> String {
    match refused(token) {
        TokenError::Json { part, why } if part == expected => why,
        other => panic!("{other}"),
    }
}

fn says(message: &str, part: &str) {
    assert!(message.contains(part), "`{part}` is not in `{message}`");
}

fn is_algorithm(fault: TokenError, alg: &str) {
    let TokenError::Algorithm { alg: told } = fault else {
        panic!("{fault}");
    };
    assert_eq!(told, Shown::of(alg));
}

// ---- what is taken ----

#[test]
fn every_command_that_is_signed_is_the_command_that_is_read() {
    for command in Command::every("a@b-1_2.c") {
        for id in [0, 1, u64::MAX] {
            let expected = Expected { id, ..EXPECTED };
            let token = sign(private(), &command, &expected).unwrap();
            let unverified = Unverified::parse(&token).unwrap();
            assert_eq!(unverified.key_name(), private().name());
            assert_eq!(unverified.verify(public(), &expected), Ok(command.clone()));
        }
    }
}

#[test]
fn keys_of_every_size_and_form_sign_and_check() {
    for (private, publics) in [
        (
            fixture!("test-only-2048-pkcs8.private.pem"),
            [fixture!("2048-spki.pem"), fixture!("2048-pkcs1.pem")],
        ),
        (
            fixture!("test-only-3072-pkcs1.private.pem"),
            [fixture!("3072-spki.pem"), fixture!("3072-pkcs1.pem")],
        ),
        (
            fixture!("test-only-4096-pkcs8.private.pem"),
            [fixture!("4096-spki.pem"), fixture!("4096-pkcs1.pem")],
        ),
    ] {
        let token = sign(&private_from(private), &command(), &EXPECTED).unwrap();
        for public in publics {
            let key = PublicKey::from_pem(public.as_bytes()).unwrap();
            let unverified = Unverified::parse(&token).unwrap();
            assert_eq!(unverified.verify(&key, &EXPECTED), Ok(command()));
        }
    }
}

#[test]
fn a_key_with_the_largest_exponent_that_is_taken_checks_signatures() {
    use rsa::{
        BigUint, RsaPrivateKey,
        pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding},
        traits::PrivateKeyParts as _,
    };
    let der =
        rsa::pkcs8::DecodePrivateKey::from_pkcs8_pem(fixture!("test-only-2048-pkcs8.private.pem"));
    let key: RsaPrivateKey = der.unwrap();
    let exponent = ((1_u64 << 33) - 100..1 << 33)
        .rev()
        .filter(|exponent| exponent % 2 == 1)
        .find_map(|exponent| {
            let [p, q] = [key.primes()[0].clone(), key.primes()[1].clone()];
            RsaPrivateKey::from_p_q(p, q, BigUint::from(exponent)).ok()
        });
    let key = exponent.unwrap();
    let public = key
        .to_public_key()
        .to_public_key_pem(LineEnding::LF)
        .unwrap();
    let public = PublicKey::from_pem(public.as_bytes()).unwrap();
    let private = private_from(&key.to_pkcs8_pem(LineEnding::LF).unwrap());
    let token = sign(&private, &command(), &EXPECTED).unwrap();
    let unverified = Unverified::parse(&token).unwrap();
    assert_eq!(unverified.verify(&public, &EXPECTED), Ok(command()));
}

#[test]
fn a_token_of_another_program_may_order_and_space_its_fields_as_it_likes() {
    let header = r#" { "kid" : "deploy", "\u0074yp":"supervisor-cmd+jwt", "alg":"RS\u003256" } "#;
    let claims = format!(
        "\n{{ \"cmd\" : {{\"child\":\"web\",\"op\":\"restart\"}}, \"jti\":\"7\", \"exp\":{},\n \
         \"nbf\":{NOW}, \"iat\":{NOW}, \"nonce\":\"{NONCE}\", \"aud\":\"{SERVER}\", \
         \"\\u0069ss\":\"deploy\" }}",
        NOW + 300
    );
    assert_eq!(judge(&signed(header, claims)), Ok(command()));
}

#[test]
fn header_fields_that_name_keys_are_ignored_whatever_they_hold() {
    for field in ["jku", "jwk", "x5c", "x5u", "x5t", "x5t#S256", "cty"] {
        for value in [
            json!("https://evil.example/keys.json"),
            json!({"kty": "RSA", "n": "AQAB", "e": "Aw"}),
            json!(["MII", [[{}]]]),
            Value::Null,
            json!(1.5),
        ] {
            let token = with_header(but(header(), field, value));
            assert_eq!(judge(&token), Ok(command()), "{field}");
        }
    }
}

// ---- algorithms ----

#[test]
fn alg_none_in_any_case_is_refused_before_a_key_is_looked_at() {
    for alg in ["none", "None", "NONE", "nOnE", "nonE"] {
        let header = but(header(), "alg", json!(alg)).to_string();
        let unsigned = format!("{}.{}", b64(&header), b64(claims().to_string()));
        assert_eq!(
            unparsed(&format!("{unsigned}.")),
            TokenError::Empty {
                part: Part::Signature
            }
        );
        assert_eq!(unparsed(&unsigned), TokenError::Parts);
        is_algorithm(unparsed(&format!("{unsigned}.AAAA")), alg);
        is_algorithm(unparsed(&signed(&header, claims().to_string())), alg);
    }
}

#[test]
fn hs256_with_the_public_pem_as_secret_is_refused() {
    let header = but(header(), "alg", json!("HS256")).to_string();
    for secret in [
        fixture!("2048-spki.pem"),
        fixture!("2048-spki.pem").trim_end(),
        fixture!("2048-pkcs1.pem"),
    ] {
        let secret = EncodingKey::from_secret(secret.as_bytes());
        let claims = claims().to_string();
        is_algorithm(
            unparsed(&signed_by(&secret, Algorithm::HS256, &header, &claims)),
            "HS256",
        );
        let claims_rs256 = signed_by(
            &secret,
            Algorithm::HS256,
            self::header().to_string(),
            &claims,
        );
        assert_eq!(refused(&claims_rs256), TokenError::Signature);
    }
}

#[test]
fn rs384_rs512_and_ps256_are_refused() {
    for (algorithm, alg) in [
        (Algorithm::RS384, "RS384"),
        (Algorithm::RS512, "RS512"),
        (Algorithm::PS256, "PS256"),
        (Algorithm::PS384, "PS384"),
        (Algorithm::PS512, "PS512"),
    ] {
        let key = private().encoding();
        let claims = claims().to_string();
        let honest = but(header(), "alg", json!(alg)).to_string();
        is_algorithm(unparsed(&signed_by(key, algorithm, &honest, &claims)), alg);
        let lying = signed_by(key, algorithm, header().to_string(), &claims);
        assert_eq!(refused(&lying), TokenError::Signature, "{alg}");
    }
}

#[test]
fn an_algorithm_that_is_almost_rs256_is_refused() {
    for alg in [
        "", "rs256", "Rs256", " RS256", "RS256 ", "RS256\0", "RS2560", "ES256", "EdDSA",
    ] {
        is_algorithm(
            unparsed(&with_header(but(header(), "alg", json!(alg)))),
            alg,
        );
    }
    let missing = unparsed(&with_header(but(header(), "alg", None)));
    assert_eq!(
        missing,
        TokenError::Missing {
            part: Part::Header,
            field: "alg"
        }
    );
    for alg in [
        json!(null),
        json!(["RS256"]),
        json!({}),
        json!(256),
        json!(true),
    ] {
        let token = with_header(but(header(), "alg", alg));
        says(&json_fault(&token, Part::Header), "a string as `alg`");
    }
}

// ---- keys ----

#[test]
fn a_signature_of_another_key_is_refused() {
    for other in [
        fixture!("test-only-3072-pkcs1.private.pem"),
        fixture!("test-only-4096-pkcs1.private.pem"),
    ] {
        let token = sign(&private_from(other), &command(), &EXPECTED).unwrap();
        assert_eq!(refused(&token), TokenError::Signature);
    }
}

#[test]
fn a_signature_over_something_else_is_refused() {
    let good = sign(private(), &command(), &EXPECTED).unwrap();
    let other = sign(private(), &Command::Info, &EXPECTED).unwrap();
    let part = |token: &str, index: usize| token.split('.').nth(index).unwrap().to_owned();
    let spliced = format!("{}.{}.{}", part(&good, 0), part(&other, 1), part(&good, 2));
    assert_eq!(refused(&spliced), TokenError::Signature);
    for signature in ["AAAA".to_owned(), "A".repeat(342), part(&good, 2).repeat(2)] {
        let token = format!("{}.{}.{signature}", part(&good, 0), part(&good, 1));
        let fault = refused(&token);
        let expected = matches!(fault, TokenError::Signature | TokenError::Base64 { .. });
        assert!(expected, "{fault}");
    }
}

#[test]
fn no_claim_is_looked_at_before_the_signature_is_right() {
    for claims in ["", "{", "[[[[", "{}", "\u{0}", &"[".repeat(40_000)] {
        let token = format!("{}.{}.AAAA", b64(header().to_string()), b64(claims));
        let expected = match claims.is_empty() {
            true => TokenError::Empty { part: Part::Claims },
            false => TokenError::Signature,
        };
        assert_eq!(refused(&token), expected);
    }
}

#[test]
fn a_key_name_that_is_no_plain_name_is_refused() {
    for (kid, why) in [
        ("", KeyNameError::Empty),
        ("../deploy", KeyNameError::BadChar('/')),
        ("..", KeyNameError::BadStart('.')),
        ("/etc/keys/deploy", KeyNameError::BadChar('/')),
        ("deploy\0", KeyNameError::BadChar('\0')),
        ("deploy\n", KeyNameError::BadChar('\n')),
        ("dep loy", KeyNameError::BadChar(' ')),
        ("dépl\u{202e}oy", KeyNameError::BadChar('é')),
        ("-deploy", KeyNameError::BadStart('-')),
        ("%2e%2e%2fdeploy", KeyNameError::BadChar('%')),
    ] {
        let token = with_header(but(header(), "kid", json!(kid)));
        assert_eq!(unparsed(&token), TokenError::KeyName(why), "{kid:?}");
    }
}

#[test]
fn a_key_name_of_65_characters_is_refused() {
    let named = |length: usize| with_header(but(header(), "kid", json!("x".repeat(length))));
    assert!(Unverified::parse(&named(64)).is_ok());
    for length in [65, 10_000] {
        let why = KeyNameError::TooLong(length);
        assert_eq!(unparsed(&named(length)), TokenError::KeyName(why));
    }
}

#[test]
fn a_key_name_that_is_a_number_or_no_text_is_refused() {
    for kid in [
        json!(7),
        json!(null),
        json!(["deploy"]),
        json!({"a": "deploy"}),
        json!(true),
    ] {
        let token = with_header(but(header(), "kid", kid));
        says(&json_fault(&token, Part::Header), "a string as `kid`");
    }
}

// ---- the header's other fields ----

#[test]
fn a_header_without_typ_or_kid_is_refused() {
    for field in ["typ", "kid"] {
        let token = with_header(but(header(), field, None));
        assert_eq!(
            unparsed(&token),
            TokenError::Missing {
                part: Part::Header,
                field
            }
        );
    }
}

#[test]
fn another_typ_is_refused() {
    for typ in [
        "",
        "JWT",
        "jwt",
        "at+jwt",
        "supervisor-cmd",
        "SUPERVISOR-CMD+JWT",
        "supervisor-cmd+JWT",
        "application/supervisor-cmd+jwt",
        "supervisor-cmd+jwt ",
        "supervisor-cmd+jwt\0",
    ] {
        let token = with_header(but(header(), "typ", json!(typ)));
        let shown = Shown::of(typ);
        assert_eq!(unparsed(&token), TokenError::Type { typ: shown });
    }
}

#[test]
fn crit_is_refused_whatever_it_holds() {
    for (field, values) in [
        (
            "crit",
            vec![
                json!([]),
                json!(["exp"]),
                json!(null),
                json!("b64"),
                json!({}),
                json!(0),
            ],
        ),
        ("b64", vec![json!(true), json!(false), json!(null)]),
    ] {
        for value in values {
            let token = with_header(but(header(), field, value));
            assert_eq!(unparsed(&token), TokenError::Critical { field });
        }
    }
    let escaped = plus(&header(), r#""cr\u0069t":[]"#);
    for header in escaped {
        let fault = unparsed(&with_header(header));
        assert_eq!(fault, TokenError::Critical { field: "crit" });
    }
}

#[test]
fn a_header_field_that_is_not_known_is_refused() {
    for field in [
        "zip", "enc", "epk", "p2c", "url", "nonce", "ALG", "alg ", "", "iss",
    ] {
        let token = with_header(but(header(), field, json!("x")));
        says(
            &json_fault(&token, Part::Header),
            &format!("unknown field `{field}`"),
        );
    }
}

#[test]
fn a_header_field_that_stands_there_twice_is_refused_however_it_is_spelled() {
    for (field, name) in [
        (r#""alg":"RS256""#, "alg"),
        (r#""al\u0067":"none""#, "alg"),
        (r#""typ":"supervisor-cmd+jwt""#, "typ"),
        (r#""\u0074\u0079\u0070":"JWT""#, "typ"),
        (r#""kid":"admin""#, "kid"),
        (r#""\u006bid":"deploy""#, "kid"),
        (r#""jku":1,"jk\u0075":1"#, "jku"),
        (r#""x5t#S256":1,"x5t\u0023S256":{}"#, "x5t#S256"),
        (r#""crit":[],"crit":[]"#, "crit"),
    ] {
        for header in plus(&header(), field) {
            let why = json_fault(&with_header(&header), Part::Header);
            says(&why, &format!("`{name}` stands there twice"));
        }
    }
}

// ---- claims ----

#[test]
fn a_token_without_one_of_its_claims_is_refused() {
    for field in ["iss", "aud", "nonce", "iat", "exp", "jti", "cmd"] {
        let token = with_claims(but(claims(), field, None));
        assert_eq!(
            refused(&token),
            TokenError::Missing {
                part: Part::Claims,
                field
            }
        );
        let token = with_claims(but(claims(), field, json!(null)));
        json_fault(&token, Part::Claims);
    }
}

#[test]
fn an_issuer_that_is_not_the_key_is_refused() {
    for iss in ["", "Deploy", "deploy ", "admin", "deploy\0", "deploy.pem"] {
        let token = with_claims(but(claims(), "iss", json!(iss)));
        let shown = Shown::of(iss);
        assert_eq!(refused(&token), TokenError::Issuer { iss: shown });
    }
}

#[test]
fn a_token_for_another_server_is_refused() {
    for aud in [
        "",
        "web1",
        &SERVER.to_uppercase(),
        &format!("{SERVER} "),
        &"a".repeat(9_000),
    ] {
        let token = with_claims(but(claims(), "aud", json!(aud)));
        let shown = Shown::of(aud);
        assert_eq!(refused(&token), TokenError::Audience { aud: shown });
    }
}

#[test]
fn a_list_of_servers_is_no_audience() {
    for aud in [
        json!([SERVER]),
        json!([SERVER, "x"]),
        json!([]),
        json!({SERVER: 1}),
    ] {
        let token = with_claims(but(claims(), "aud", aud));
        says(&json_fault(&token, Part::Claims), "a string as `aud`");
    }
}

#[test]
fn a_token_from_another_connection_is_refused() {
    let token = sign(private(), &command(), &EXPECTED).unwrap();
    let expected = Expected {
        nonce: "Q1dXxOZ6oJ2oM1n0y4m1c0m2T3l5b7f9h1j3k5l7n9o",
        ..EXPECTED
    };
    let unverified = Unverified::parse(&token).unwrap();
    assert_eq!(
        unverified.verify(public(), &expected),
        Err(TokenError::Nonce)
    );
    for nonce in ["", &NONCE[1..], &NONCE.to_lowercase(), &format!("{NONCE}=")] {
        let token = with_claims(but(claims(), "nonce", json!(nonce)));
        assert_eq!(refused(&token), TokenError::Nonce);
    }
}

#[test]
fn a_token_for_another_request_is_refused() {
    let token = sign(private(), &command(), &EXPECTED).unwrap();
    let expected = Expected { id: 8, ..EXPECTED };
    let unverified = Unverified::parse(&token).unwrap();
    let fault = unverified.verify(public(), &expected).unwrap_err();
    assert_eq!(
        fault,
        TokenError::Request {
            jti: Shown::of("7"),
            id: 8
        }
    );
    for jti in [
        "",
        "07",
        "+7",
        "7.0",
        " 7",
        "7 ",
        "0x7",
        "7e0",
        "８",
        "18446744073709551623",
    ] {
        let token = with_claims(but(claims(), "jti", json!(jti)));
        let shown = Shown::of(jti);
        assert_eq!(refused(&token), TokenError::Request { jti: shown, id: 7 });
    }
    let token = with_claims(but(claims(), "jti", json!(7)));
    says(&json_fault(&token, Part::Claims), "a string as `jti`");
}

#[test]
fn a_time_that_is_no_plain_integer_is_refused() {
    for field in ["iat", "exp", "nbf"] {
        for value in [
            "1700000000.0",
            "1.7e9",
            "17E8",
            "1700000000.5",
            "-1",
            "-0",
            "-1700000000",
            "1e400",
            "\"1700000000\"",
            "\"\"",
            "null",
            "true",
            "[1700000000]",
            "{}",
            "18446744073709551616",
            "18446744073709551615",
            "9223372036854775808",
            "9007199254740993",
            "99999999999999999999999999999999999999999999",
        ] {
            let placed = but(claims(), field, json!("@@"));
            let claims = placed.to_string().replace("\"@@\"", value);
            json_fault(&with_claims(&claims), Part::Claims);
        }
        for value in [
            "01700000000",
            "+1700000000",
            "0x6553f100",
            "1_700_000_000",
            "NaN",
            "Infinity",
        ] {
            let placed = but(claims(), field, json!("@@"));
            let claims = placed.to_string().replace("\"@@\"", value);
            json_fault(&with_claims(&claims), Part::Claims);
        }
    }
}

#[test]
fn a_token_that_is_good_for_more_than_5_minutes_is_refused() {
    let of = |iat: i64, exp: i64| {
        let claims = but(claims(), "iat", json!(iat));
        with_claims(but(claims, "exp", json!(exp)))
    };
    assert_eq!(judge(&of(NOW, NOW + 300)), Ok(command()));
    assert_eq!(judge(&of(NOW - 270, NOW + 30)), Ok(command()));
    assert_eq!(
        refused(&of(NOW, NOW + 301)),
        TokenError::Lifetime { seconds: 301 }
    );
    let huge = 1_i64 << 53;
    assert!(matches!(
        refused(&of(NOW, huge)),
        TokenError::Lifetime { .. }
    ));
    assert!(matches!(
        refused(&of(0, NOW + 1)),
        TokenError::Lifetime { .. }
    ));
    assert!(matches!(
        refused(&of(huge, huge)),
        TokenError::Future { .. }
    ));
    assert_eq!(refused(&of(NOW, NOW - 1)), TokenError::Backwards);
    assert_eq!(judge(&of(NOW, NOW)), Ok(command()));
}

#[test]
fn a_token_that_is_no_longer_good_is_refused() {
    let at = |now: i64| {
        let token = sign(private(), &command(), &EXPECTED).unwrap();
        let unverified = Unverified::parse(&token).unwrap();
        unverified.verify(public(), &Expected { now, ..EXPECTED })
    };
    for now in [NOW, NOW + 59, NOW + 60, NOW + 89] {
        assert_eq!(at(now), Ok(command()), "{now}");
    }
    assert_eq!(at(NOW + 90), Err(TokenError::Expired { seconds: 30 }));
    assert_eq!(at(NOW + 3_600), Err(TokenError::Expired { seconds: 3_540 }));
    assert!(matches!(at(i64::MAX), Err(TokenError::Expired { .. })));
}

#[test]
fn a_token_that_was_signed_in_the_future_is_refused() {
    let at = |iat: i64| {
        let claims = but(claims(), "iat", json!(iat));
        judge(&with_claims(but(claims, "exp", json!(iat + 60))))
    };
    assert_eq!(at(NOW + 30), Ok(command()));
    assert_eq!(at(NOW + 31), Err(TokenError::Future { seconds: 31 }));
    let token = sign(private(), &command(), &EXPECTED).unwrap();
    for now in [i64::MIN, -1, 0] {
        let unverified = Unverified::parse(&token).unwrap();
        let fault = unverified.verify(public(), &Expected { now, ..EXPECTED });
        assert!(matches!(fault, Err(TokenError::Future { .. })), "{now}");
    }
}

#[test]
fn a_token_that_is_not_good_yet_is_refused() {
    let at = |nbf: i64| judge(&with_claims(but(claims(), "nbf", json!(nbf))));
    for nbf in [0, NOW - 10_000, NOW, NOW + 30] {
        assert_eq!(at(nbf), Ok(command()), "{nbf}");
    }
    assert_eq!(at(NOW + 31), Err(TokenError::NotYet { seconds: 31 }));
    assert!(matches!(at(1 << 53), Err(TokenError::NotYet { .. })));
}

#[test]
fn a_claim_that_is_not_known_is_refused() {
    for field in [
        "sub",
        "scope",
        "admin",
        "ISS",
        "cmd ",
        "",
        "crit",
        "__proto__",
    ] {
        let token = with_claims(but(claims(), field, json!("x")));
        says(
            &json_fault(&token, Part::Claims),
            &format!("unknown field `{field}`"),
        );
    }
}

#[test]
fn a_claim_that_stands_there_twice_is_refused_however_it_is_spelled() {
    for (field, name) in [
        (r#""iss":"deploy""#, "iss"),
        (r#""aud":"x""#, "aud"),
        (r#""\u0061ud":"x""#, "aud"),
        (r#""nonce":"x""#, "nonce"),
        (r#""iat":1"#, "iat"),
        (r#""exp":9999999999"#, "exp"),
        (r#""e\u0078p":9999999999"#, "exp"),
        (r#""nbf":1,"nbf":1"#, "nbf"),
        (r#""jti":"8""#, "jti"),
        (r#""cmd":{"op":"kill"}"#, "cmd"),
        (r#""c\u006dd":{"op":"kill"}"#, "cmd"),
    ] {
        for claims in plus(&claims(), field) {
            let why = json_fault(&with_claims(&claims), Part::Claims);
            says(&why, &format!("`{name}` stands there twice"));
        }
    }
}

#[test]
fn a_command_with_duplicate_or_unknown_fields_is_refused() {
    for (cmd, why) in [
        (
            r#"{"op":"stop","child":"web","op":"start"}"#,
            "`op` stands there twice",
        ),
        (
            r#"{"op":"stop","child":"a","ch\u0069ld":"b"}"#,
            "`child` stands there twice",
        ),
        (
            r#"{"op":"stop","child":"web","force":true}"#,
            "unknown field `force`",
        ),
        (r#"{"op":"kill","all":true}"#, "takes neither"),
        (r#"{"op":"stop","child":"../web"}"#, "not a child name"),
        (r#"{"op":"shutdown"}"#, "unknown op"),
        (r#"{"child":"web"}"#, "`op` is missing"),
        (r#"{}"#, "`op` is missing"),
        (r#""stop""#, "a command object"),
        (r#"[{"op":"info"}]"#, "a command object"),
        (r#"{"op":"stop","all":1}"#, "boolean"),
    ] {
        let placed = but(claims(), "cmd", json!("@@")).to_string();
        let claims = placed.replace("\"@@\"", cmd);
        says(&json_fault(&with_claims(&claims), Part::Claims), why);
    }
}

// ---- form ----

#[test]
fn a_token_of_another_number_of_parts_is_refused() {
    let good = sign(private(), &command(), &EXPECTED).unwrap();
    let two = good.rsplit_once('.').unwrap().0;
    for token in [
        "",
        "a",
        two,
        &format!("{good}."),
        &format!("{good}.AAAA"),
        &format!(".{good}"),
    ] {
        assert_eq!(unparsed(token), TokenError::Parts, "{token}");
    }
    for (token, part) in [
        ("..", Part::Header),
        (".e30.AAAA", Part::Header),
        ("e30..AAAA", Part::Claims),
        ("e30.e30.", Part::Signature),
    ] {
        assert_eq!(unparsed(token), TokenError::Empty { part });
    }
}

#[test]
fn what_is_not_canonical_base64url_is_refused() {
    let good = sign(private(), &command(), &EXPECTED).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    for (index, part) in [(0, Part::Header), (1, Part::Claims), (2, Part::Signature)] {
        let text = parts[index];
        for bad in [
            format!("{text}="),
            format!("{text}=="),
            format!(" {text}"),
            format!("{text}\n"),
            format!("{text}\r\n"),
            format!("{text}\0"),
            format!("{text}A*"),
            format!("{}+{}", &text[..3], &text[4..]),
            format!("{}/{}", &text[..3], &text[4..]),
            format!("{}é{}", &text[..3], &text[5..]),
        ] {
            let mut parts = parts.clone();
            parts[index] = &bad;
            assert_eq!(
                unparsed(&parts.join(".")),
                TokenError::Base64 { part },
                "{bad:?}"
            );
        }
    }
    // 256 bytes leave two bits of the last character unused.
    let unused = parts[2].strip_suffix(|_| true).unwrap();
    let spellings = (b'0'..=b'z').map(char::from).filter(|last| {
        let token = format!("{}.{}.{unused}{last}", parts[0], parts[1]);
        judge(&token).is_ok()
    });
    assert_eq!(spellings.count(), 1);
}

#[test]
fn a_part_that_is_not_one_json_object_is_refused() {
    for text in [
        "",
        "null",
        "1",
        "\"x\"",
        "[]",
        "{",
        "{}}",
        "{} {}",
        "{}x",
        "{\"alg\"}",
        "{'alg':1}",
        "\u{feff}{}",
        "{\"alg\":\"RS256\",}",
        "// x\n{}",
        "{\"a\":\u{1}}",
        "{\"alg\":\"\\ud800\"}",
    ] {
        if !text.is_empty() {
            json_fault(&signed(text, claims().to_string()), Part::Header);
            json_fault(&signed(header().to_string(), text), Part::Claims);
        }
    }
    for bytes in [
        &b"{\"alg\":\"\xff\"}"[..],
        b"\xff\xfe{\0}\0",
        b"{\"\xc0\xafalg\":1}",
    ] {
        says(&json_fault(&signed(bytes, "{}"), Part::Header), "not UTF-8");
        says(
            &json_fault(&signed(header().to_string(), bytes), Part::Claims),
            "not UTF-8",
        );
    }
}

#[test]
fn depth_costs_nothing() {
    for deep in ["[".repeat(30_000), "{\"a\":".repeat(8_000)] {
        let [header, _] = plus(&header(), &format!("\"jku\":{deep}"));
        json_fault(&format!("{}.e30.AAAA", b64(header)), Part::Header);
        let [claims, _] = plus(&claims(), &format!("\"x\":{deep}"));
        json_fault(&with_claims(claims), Part::Claims);
    }
    let closed = format!("\"jku\":{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let [header, _] = plus(&header(), &closed);
    assert_eq!(judge(&with_header(header)), Ok(command()));
}

#[test]
fn a_token_that_is_too_long_is_refused() {
    let long = "A".repeat(TOKEN_BYTES_MAX + 1);
    let bytes = long.len();
    assert_eq!(unparsed(&long), TokenError::TooLong { bytes });
    assert_eq!(unparsed(&long[1..]), TokenError::Parts);
}

#[test]
fn no_byte_of_a_token_can_be_changed() {
    let good = sign(private(), &command(), &EXPECTED).unwrap();
    assert_eq!(judge(&good), Ok(command()));
    for at in 0..good.len() {
        for bit in 0..7 {
            let mut bytes = good.clone().into_bytes();
            bytes[at] ^= 1 << bit;
            let changed = String::from_utf8(bytes).unwrap();
            assert!(judge(&changed).is_err(), "byte {at}, bit {bit}");
        }
        let shorter = [&good[..at], &good[at + 1..]].concat();
        assert!(judge(&shorter).is_err(), "without byte {at}");
        assert!(judge(&good[..at]).is_err(), "the first {at} bytes");
    }
}

// ---- what is told ----

#[test]
fn no_message_holds_the_token_or_anything_that_a_log_obeys() {
    let good = sign(private(), &command(), &EXPECTED).unwrap();
    let unverified = Unverified::parse(&good).unwrap();
    let shown = format!("{unverified:?}");
    assert!(shown.contains("deploy") && shown.len() < 100, "{shown}");
    let evil = format!("\u{1b}[2J\r\n\u{202e}{}", "A".repeat(5_000));
    for field in ["alg", "typ", "kid", evil.as_str()] {
        refused(&with_header(but(header(), field, json!(evil))));
    }
    for field in [
        "iss",
        "aud",
        "nonce",
        "jti",
        "iat",
        "exp",
        "cmd",
        evil.as_str(),
    ] {
        let token = with_claims(but(claims(), field, json!(evil)));
        let message = refused(&token).to_string();
        let tail = token.rsplit('.').next().unwrap();
        assert!(
            !message.contains(&tail[..16]) && !message.contains(NONCE),
            "{message}"
        );
    }
}

// ---- signing ----

#[test]
fn a_signed_token_holds_what_design_says_and_no_more() {
    let token = sign(private(), &command(), &EXPECTED).unwrap();
    let part = |index: usize| -> Value {
        let text = token.split('.').nth(index).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).unwrap()).unwrap()
    };
    assert_eq!(part(0), header());
    assert_eq!(part(1), claims());
}

#[test]
fn a_server_whose_clock_is_out_of_range_gets_no_token() {
    for now in [i64::MIN, -1, 1 << 53, i64::MAX] {
        let expected = Expected { now, ..EXPECTED };
        let fault = sign(private(), &command(), &expected).unwrap_err();
        assert!(matches!(fault, SignError::Time { .. }), "{fault}");
    }
    for now in [0, (1 << 53) - 60] {
        let expected = Expected { now, ..EXPECTED };
        let token = sign(private(), &command(), &expected).unwrap();
        let unverified = Unverified::parse(&token).unwrap();
        assert_eq!(unverified.verify(public(), &expected), Ok(command()));
    }
}

#[test]
fn a_server_that_says_an_endless_id_gets_no_token() {
    let endless = "x".repeat(TOKEN_BYTES_MAX);
    let expected = Expected {
        audience: &endless,
        ..EXPECTED
    };
    let fault = sign(private(), &command(), &expected).unwrap_err();
    assert!(matches!(fault, SignError::TooLong { .. }), "{fault}");
}
