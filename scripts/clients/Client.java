// java.net.http.HttpClient with its defaults, which offer HTTP/2. driver.py describes the lines.

import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Arrays;

class Client {
    static final HttpClient CLIENT = HttpClient.newHttpClient();

    static String send(String[] fields) throws Exception {
        var request = HttpRequest.newBuilder(URI.create(fields[1])).timeout(Duration.ofMinutes(1));
        BodyPublisher body = BodyPublishers.noBody();
        if (!fields[4].equals("-")) {
            byte[] content = Files.readAllBytes(Path.of(fields[4]));
            body = fields[3].equals("chunked")
                ? BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(content))
                : BodyPublishers.ofByteArray(content);
        }
        for (String line : Arrays.copyOfRange(fields, 6, fields.length)) {
            int colon = line.indexOf(": ");
            String name = line.substring(0, colon), value = line.substring(colon + 2);
            if (name.equals("Expect")) {
                request.expectContinue(true);
            } else {
                request.header(name, value);
            }
        }
        request.method(fields[0], body);
        HttpResponse<byte[]> answer = CLIENT.send(request.build(), BodyHandlers.ofByteArray());
        Files.write(Path.of(fields[5]), answer.body());
        var text = new StringBuilder().append(answer.statusCode());
        answer.headers().map().forEach((name, values) ->
            text.append('\t').append(name).append(": ").append(String.join(", ", values)));
        return text.toString();
    }

    public static void main(String[] arguments) throws Exception {
        var input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            String answer;
            try {
                answer = send(line.split("\t"));
            } catch (Exception error) {
                answer = "FAILED\t" + error.toString().replaceAll("[\\t\\n]", " ");
            }
            System.out.println(answer);
        }
        System.exit(0);
    }
}
