#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sizland_chat_fuzz::rest_body::run(data));
