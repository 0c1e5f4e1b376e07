// What a thread takes: four numbers, where all offsets, strides and lengths are multiples of four. Parameters count fours.
alias Elements = vec4<f32>;
alias Bits = vec4<u32>;
