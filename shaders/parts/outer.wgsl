// Rows of the result are rows of x y^T.
fn outer(x: vec4<f32>, y: vec4<f32>) -> mat4x4<f32> {
    return mat4x4(x.x * y, x.y * y, x.z * y, x.w * y);
}
